package manifests_test

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"stanch/worker/config"
	"stanch/worker/manifests"
)

// userFileOptions returns options with a playbook and a rule pack.
func userFileOptions() manifests.Options {
	o := optionsForPhase(2)
	o.Config = "playbooks: [mine]\nrules: [packs]\n"
	o.Playbooks = map[string]string{"mine.yaml": "playbook: mine\n"}
	o.Rules = map[string]string{"shop.yaml": "rules: []\n"}
	return o
}

func TestUserFilesAreMountedWhereTheyAreRead(t *testing.T) {
	const playbookDir, ruleDir = "/etc/stanch/playbooks", "/etc/stanch/rules"
	maps := map[string]map[string]string{}
	mounts := map[string][]string{}
	for _, object := range renderObjects(t, userFileOptions()) {
		switch object := object.(type) {
		case *corev1.ConfigMap:
			maps[object.Name] = object.Data
		case *appsv1.Deployment:
			mounts["worker"] = listConfigMapMounts(object.Spec.Template.Spec)
		case *appsv1.DaemonSet:
			mounts["sensor"] = listConfigMapMounts(object.Spec.Template.Spec)
			if args := object.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--rules="+ruleDir) {
				t.Errorf("the sensor does not read %s: %q", ruleDir, args)
			}
		}
	}
	if strings.TrimSpace(maps["stanch-playbooks"]["mine.yaml"]) != "playbook: mine" ||
		strings.TrimSpace(maps["stanch-rules"]["shop.yaml"]) != "rules: []" {
		t.Errorf("the ConfigMaps are %v", maps)
	}
	for pod, want := range map[string][]string{
		"worker": {"stanch-playbooks " + playbookDir, "stanch-rules " + ruleDir}, "sensor": {"stanch-rules " + ruleDir},
	} {
		for _, mount := range want {
			if !slices.Contains(mounts[pod], mount) {
				t.Errorf("the %s mounts %q, want %q", pod, mounts[pod], mount)
			}
		}
	}
	cfg, problems := config.Parse("stanch.yaml", []byte(maps["stanch-config"]["stanch.yaml"]))
	if problems.HasErrors() || !slices.Equal(cfg.Playbooks, []string{playbookDir}) ||
		!slices.Equal(cfg.Rules, []string{ruleDir}) {
		t.Errorf("the worker reads %q and %q: %v", cfg.Playbooks, cfg.Rules, problems)
	}
}

// listConfigMapMounts returns "CONFIGMAP DIR" for every ConfigMap that a pod's first container mounts.
func listConfigMapMounts(pod corev1.PodSpec) []string {
	var out []string
	for _, m := range pod.Containers[0].VolumeMounts {
		for _, v := range pod.Volumes {
			if v.Name == m.Name && v.ConfigMap != nil {
				out = append(out, v.ConfigMap.Name+" "+m.MountPath)
			}
		}
	}
	return out
}

// A pod that reloads its files must not restart because of them: a restart does not keep the last valid version.
func TestChangedUserFilesStartNoPods(t *testing.T) {
	before := userFileOptions()
	after := userFileOptions()
	after.Playbooks["mine.yaml"], after.Rules["shop.yaml"] = "playbook: changed\n", "rules: [] # changed\n"
	if a, b := podTemplates(t, before), podTemplates(t, after); a != b {
		t.Errorf("the pods differ:\n%s\n%s", a, b)
	}
	after.Config += "cluster: other\n"
	if podTemplates(t, before) == podTemplates(t, after) {
		t.Error("a changed configuration starts no new pods")
	}
}

func podTemplates(t *testing.T, o manifests.Options) string {
	t.Helper()
	var out strings.Builder
	for _, object := range renderObjects(t, o) {
		switch object := object.(type) {
		case *appsv1.Deployment:
			out.WriteString(object.Spec.Template.String())
		case *appsv1.DaemonSet:
			out.WriteString(object.Spec.Template.String())
		}
	}
	return out.String()
}

func TestInvalidUserFilesAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		playbooks map[string]string
		want      []string
	}{
		"other extension": {map[string]string{"mine.yml": "playbook: mine"}, []string{"/playbooks", "mine.yml"}},
		"path":            {map[string]string{"a/mine.yaml": "playbook: mine"}, []string{"/playbooks", "a/mine.yaml"}},
		"empty":           {map[string]string{"mine.yaml": ""}, []string{"/playbooks/mine.yaml"}},
		"too large": {
			map[string]string{"small.yaml": "playbook: mine", "large.yaml": strings.Repeat("x", 1_000_000)},
			[]string{"playbooks: the files have 1000034 bytes", "the largest is large.yaml"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := optionsForPhase(1)
			o.Playbooks = c.playbooks
			_, err := manifests.WriteYAML(o)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want an error with %q", err, want)
				}
			}
		})
	}
}
