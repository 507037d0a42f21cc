package manifests

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func (o Options) gatewayService() runtime.Object {
	return &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: o.objectMeta(GatewayService),
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app.kubernetes.io/name": WorkerName},
			Ports: []corev1.ServicePort{
				{Name: "nodes", Port: GatewayPort, TargetPort: intstr.FromString("nodes")},
				{Name: "people", Port: APIPort, TargetPort: intstr.FromString("people")},
			},
		},
	}
}

func (o Options) evidenceClaim() runtime.Object {
	mode := corev1.ReadWriteOnce
	if o.Replicas > 1 {
		mode = corev1.ReadWriteMany
	}
	return &corev1.PersistentVolumeClaim{
		TypeMeta:   typeMeta("v1", "PersistentVolumeClaim"),
		ObjectMeta: o.objectMeta(EvidenceClaim), Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{mode},
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")},
			},
		},
	}
}

// mountedVolume is a volume with its mount.
type mountedVolume struct {
	name   string
	source corev1.VolumeSource
	mount  corev1.VolumeMount
}

func addVolumes(pod *corev1.PodSpec, volumes ...mountedVolume) {
	for _, v := range volumes {
		v.mount.Name = v.name
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: v.name, VolumeSource: v.source})
		pod.Containers[0].VolumeMounts = append(pod.Containers[0].VolumeMounts, v.mount)
	}
}

func secretVolume(name string) corev1.VolumeSource {
	mode := int32(0o400)
	return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name, DefaultMode: &mode}}
}

func hostPathVolume(path string, t corev1.HostPathType) corev1.VolumeSource {
	return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &t}}
}

func fieldEnvVar(name, path string) corev1.EnvVar {
	return corev1.EnvVar{
		Name:      name,
		ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}},
	}
}

func resourceRequirements(cpu, memory, limit string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse(cpu),
			corev1.ResourceMemory: resource.MustParse(memory),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(limit)},
	}
}

func newPodTemplate(app string, spec corev1.PodSpec) (*metav1.LabelSelector, corev1.PodTemplateSpec) {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": app}},
		corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: partLabels(app)}, Spec: spec}
}

// workerDeployment returns the Deployment of the gateway and the Temporal worker. It needs no privileges on its node.
func (o Options) workerDeployment() runtime.Object {
	yes, no := true, false
	user, group := int64(65532), int64(65532)
	if o.DataPath != "" {
		user, group = 0, 0 // a directory of the node belongs to root
	}
	args := []string{
		"worker", "--config", "/etc/stanch/config/stanch.yaml", "--data", "/var/lib/stanch", "--keys", "/etc/stanch/keys",
		"--pki", "/etc/stanch/pki",
		"--temporal", o.TemporalAddress, "--namespace", o.TemporalNamespace, "--listen-nodes",
		fmt.Sprintf(":%d", GatewayPort), "--health", fmt.Sprintf(":%d", healthPort),
		"--listen-api", fmt.Sprintf(":%d", APIPort),
	}
	if o.TemporalTLS {
		args = append(args, "--tls", "/etc/stanch/temporal")
	}
	if o.TemporalServerName != "" {
		args = append(args, "--tls-server-name", o.TemporalServerName)
	}
	pod := corev1.PodSpec{
		ServiceAccountName: WorkerName, AutomountServiceAccountToken: &yes, HostNetwork: o.HostNetwork,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsUser: &user, RunAsGroup: &group, FSGroup: &group,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: "worker", Image: o.Image, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
			Resources: resourceRequirements("100m", "128Mi", "1Gi"),
			Env: []corev1.EnvVar{
				fieldEnvVar("POD_NAMESPACE", "metadata.namespace"),
				fieldEnvVar("POD_UID", "metadata.uid"),
			},
			Ports: []corev1.ContainerPort{
				{Name: "nodes", ContainerPort: GatewayPort},
				{Name: "people", ContainerPort: APIPort},
				{Name: "health", ContainerPort: healthPort},
			},
			ReadinessProbe: &corev1.Probe{
				PeriodSeconds: 5, TimeoutSeconds: 3,
				ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
					Path: "/healthz",
					Port: intstr.FromString("health"),
				}},
			},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}},
	}
	if o.HostNetwork {
		pod.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	}
	addVolumes(
		&pod,
		mountedVolume{
			"config",
			corev1.VolumeSource{
				ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: ConfigMapName}},
			},
			corev1.VolumeMount{MountPath: "/etc/stanch/config", ReadOnly: true},
		},
		mountedVolume{"keys", secretVolume(KeysSecret), corev1.VolumeMount{MountPath: "/etc/stanch/keys", ReadOnly: true}},
		mountedVolume{"pki", secretVolume(PKISecret), corev1.VolumeMount{MountPath: "/etc/stanch/pki", ReadOnly: true}},
	)
	for _, v := range []mountedVolume{
		{"slack", secretVolume(SlackSecret), corev1.VolumeMount{MountPath: SlackDir, ReadOnly: true}},
		{"integrations", secretVolume(NotificationSecret), corev1.VolumeMount{MountPath: NotificationDir, ReadOnly: true}},
	} {
		v.source.Secret.Optional = &yes
		addVolumes(&pod, v)
	}
	if o.TemporalTLS {
		addVolumes(&pod, mountedVolume{
			"temporal", secretVolume(TemporalSecret),
			corev1.VolumeMount{MountPath: "/etc/stanch/temporal", ReadOnly: true},
		})
	}
	if o.DataPath != "" {
		addVolumes(&pod, mountedVolume{
			"data", hostPathVolume(o.DataPath, corev1.HostPathDirectoryOrCreate),
			corev1.VolumeMount{MountPath: "/var/lib/stanch"},
		})
	} else {
		addVolumes(
			&pod, // the local socket is each replica's own; the evidence is shared
			mountedVolume{
				"data",
				corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
				corev1.VolumeMount{MountPath: "/var/lib/stanch"},
			},
			mountedVolume{
				"evidence",
				corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: EvidenceClaim}},
				corev1.VolumeMount{MountPath: "/var/lib/stanch/evidence"},
			},
		)
	}
	selector, podTemplate := newPodTemplate(WorkerName, pod)
	// The usual annotations of Prometheus, which need no objects of their own in the cluster.
	podTemplate.Annotations = map[string]string{
		"prometheus.io/scrape": "true",
		"prometheus.io/port":   strconv.Itoa(healthPort), "prometheus.io/path": "/metrics",
	}
	strategy := appsv1.DeploymentStrategy{}
	if o.Replicas == 1 {
		strategy.Type = appsv1.RecreateDeploymentStrategyType // two pods must not use the same volume
	}
	return &appsv1.Deployment{
		TypeMeta: typeMeta("apps/v1", "Deployment"), ObjectMeta: o.objectMeta(WorkerName),
		Spec: appsv1.DeploymentSpec{Replicas: &o.Replicas, Selector: selector, Template: podTemplate, Strategy: strategy},
	}
}

// sensorDaemonSet returns the DaemonSet of the node agent, which has full access to its own node and none to the
// cluster.
func (o Options) sensorDaemonSet() runtime.Object {
	yes, no := true, false
	both := corev1.MountPropagationBidirectional
	args := []string{"--gateway", o.GatewayAddress, "--certs", "/etc/stanch/node", "--cri", o.CRISocket}
	identity := []mountedVolume{{
		"certificate", hostPathVolume(o.NodeCertDir, corev1.HostPathDirectory),
		corev1.VolumeMount{MountPath: "/etc/stanch/node", ReadOnly: true},
	}}
	if o.NodeCertDir == "" {
		args = []string{"--gateway", o.GatewayAddress, "--enroll", o.enrollURL(), "--cri", o.CRISocket}
		identity = enrollmentVolumes()
	}
	if o.LockDir != "" {
		args = append(args, "--lock-dir", o.LockDir)
	}
	runtimeDir := filepath.Dir(o.CRISocket)
	pod := corev1.PodSpec{
		ServiceAccountName: SensorName, AutomountServiceAccountToken: &no, EnableServiceLinks: &no, HostPID: true,
		HostNetwork: true,
		DNSPolicy:   corev1.DNSClusterFirstWithHostNet, PriorityClassName: "system-node-critical",
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{
			Name: "sensor", Image: o.SensorImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
			Resources:       resourceRequirements("50m", "64Mi", "256Mi"),
			Env:             []corev1.EnvVar{fieldEnvVar("NODE_NAME", "spec.nodeName")},
			SecurityContext: &corev1.SecurityContext{Privileged: &yes, ReadOnlyRootFilesystem: &yes},
		}},
	}
	addVolumes(&pod, identity...)
	addVolumes(&pod,
		mountedVolume{
			"state", hostPathVolume("/var/lib/stanch-sensor", corev1.HostPathDirectoryOrCreate),
			corev1.VolumeMount{MountPath: "/var/lib/stanch-sensor"},
		},
		mountedVolume{
			"cgroup", hostPathVolume("/sys/fs/cgroup", corev1.HostPathDirectory),
			corev1.VolumeMount{MountPath: "/sys/fs/cgroup"},
		},
		// The lock is pinned here and outlives the pod, even if the pod is the first to mount it.
		mountedVolume{
			"bpf", hostPathVolume("/sys/fs/bpf", corev1.HostPathDirectory),
			corev1.VolumeMount{MountPath: "/sys/fs/bpf", MountPropagation: &both},
		},
		mountedVolume{
			"tracing", hostPathVolume("/sys/kernel/tracing", corev1.HostPathDirectory),
			corev1.VolumeMount{MountPath: "/sys/kernel/tracing"},
		},
		mountedVolume{
			"runtime", hostPathVolume(runtimeDir, corev1.HostPathDirectory),
			corev1.VolumeMount{MountPath: runtimeDir},
		},
		mountedVolume{
			"runc", hostPathVolume("/run/runc", corev1.HostPathDirectoryOrCreate),
			corev1.VolumeMount{MountPath: "/run/runc", ReadOnly: true},
		},
	)
	selector, podTemplate := newPodTemplate(SensorName, pod)
	return &appsv1.DaemonSet{
		TypeMeta: typeMeta("apps/v1", "DaemonSet"), ObjectMeta: o.objectMeta(SensorName),
		Spec: appsv1.DaemonSetSpec{Selector: selector, Template: podTemplate},
	}
}

// enrollURL returns the address of the gateway's API on the host for sensors.
func (o Options) enrollURL() string {
	host, _, err := net.SplitHostPort(o.GatewayAddress)
	if err != nil {
		host = o.GatewayAddress
	}
	return "https://" + net.JoinHostPort(host, strconv.Itoa(APIPort))
}

// enrollAudience is the audience of a sensor's token: the gateway, not the API server.
const enrollAudience = "stanch-gateway"

// enrollmentVolumes returns what a sensor needs for its first certificate: its pod's token, and the authority's
// certificate.
func enrollmentVolumes() []mountedVolume {
	seconds := int64(600)
	return []mountedVolume{
		{
			"token",
			corev1.VolumeSource{
				Projected: &corev1.ProjectedVolumeSource{
					Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
						Audience: enrollAudience, ExpirationSeconds: &seconds, Path: "token",
					}}},
				},
			},
			corev1.VolumeMount{MountPath: "/var/run/secrets/stanch", ReadOnly: true},
		},
		{
			"ca",
			corev1.VolumeSource{
				ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: CAConfigMap}},
			},
			corev1.VolumeMount{MountPath: "/etc/stanch/ca", ReadOnly: true},
		},
	}
}
