package kubeaudit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	lab "stanch/testenv/kube"
)

func newClient(t *testing.T, c *rest.Config) kubernetes.Interface {
	t.Helper()
	c.QPS, c.Burst = -1, -1
	out, err := kubernetes.NewForConfig(c)
	require.NoError(t, err)
	return out
}

var allPermissions = rbacv1.PolicyRule{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}

// newTestClients makes a pod and logins: an administrator's, of two service accounts, of the pod's own token, and none.
func (w *auditFixture) newTestClients(t *testing.T) testClients {
	t.Helper()
	pod := lab.NewPod("plain", lab.BusyboxImage, "/bin/sleep", "3600")
	running := w.RunPod(t, w.namespace, pod)
	strong := w.ConfigWithRules(t, w.namespace, "strong", allPermissions)
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: w.namespace + "-default"}, RoleRef: rbacv1.RoleRef{
			APIGroup: rbacv1.GroupName,
			Kind:     "ClusterRole", Name: "edit",
		},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: w.namespace, Name: "default"}},
	}
	_, err := w.Client().RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{})
	require.NoError(t, err)
	out, err := w.Client().CoreV1().ServiceAccounts(w.namespace).CreateToken(t.Context(), "default",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind: "Pod", APIVersion: "v1", Name: "plain",
				UID: running.UID,
			},
		}}, metav1.CreateOptions{})
	require.NoError(t, err)
	stolen := rest.AnonymousClientConfig(w.Config())
	none := rest.CopyConfig(stolen)
	stolen.BearerToken = out.Status.Token
	return testClients{clusterAdmin: w.Client(), privilegedAccount: newClient(t, strong), unprivilegedAccount: newClient(t,
		w.ConfigWithRules(t, w.namespace, "weak")), podAccount: newClient(t, stolen), anonymous: newClient(t, none)}
}

// execWithToken enters the pod with a service account's token, in the older of the two protocols.
func (w *auditFixture) execWithToken(ctx context.Context, ns string) error {
	as, err := w.TokenConfig(ctx, ns, "strong")
	if err != nil {
		return err
	}
	request := w.Client().CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name("plain").SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: "main", Command: []string{"/bin/true"}, Stdout: true},
			scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(as, http.MethodPost, request.URL())
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: null}), null.Close())
}

func (w *auditFixture) portForward(ctx context.Context) error {
	round, upgrade, err := spdy.RoundTripperFor(w.Config())
	if err != nil {
		return err
	}
	url := w.Client().
		CoreV1().
		RESTClient().
		Post().
		Resource("pods").
		Namespace(w.namespace).
		Name("plain").
		SubResource("portforward").
		URL()
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(spdy.NewDialer(upgrade, &http.Client{Transport: round}, http.MethodPost, url),
		[]string{"0:80"}, stop, ready, nil, nil)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	close(stop)
	return <-done
}

// approveCSR has a certificate of an administrator's approved.
func approveCSR(ctx context.Context, c kubernetes.Interface, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: "mallory", Organization: []string{"team"}}}, key)
	if err != nil {
		return err
	}
	made, err := c.CertificatesV1().CertificateSigningRequests().Create(ctx,
		&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
				SignerName: "kubernetes.io/kube-apiserver-client",
				Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
			},
		}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	made.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{
		Type:   certificatesv1.CertificateApproved,
		Status: corev1.ConditionTrue, Reason: "Test",
	}}
	_, err = c.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, name, made, metav1.UpdateOptions{})
	return err
}
