package installation_test

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"stanch/sensors/gatewayrpc"
	"stanch/worker/installation"
)

const namespace = "stanch-system"

// readSecrets returns the data of every secret in the namespace.
func readSecrets(t *testing.T, client *fake.Clientset) map[string]map[string][]byte {
	t.Helper()
	list, err := client.CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	out := map[string]map[string][]byte{}
	for _, s := range list.Items {
		out[s.Name] = s.Data
	}
	return out
}

// publishedCA returns the certificate that sensors read.
func publishedCA(t *testing.T, client *fake.Clientset) string {
	t.Helper()
	published, err := client.CoreV1().ConfigMaps(namespace).Get(t.Context(), "stanch-ca", metav1.GetOptions{})
	require.NoError(t, err)
	return published.Data["ca.crt"]
}

func newSecret(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Data: data}
}

func TestSecretsAreCreatedOnce(t *testing.T) {
	client := fake.NewClientset()
	s := installation.Secrets{KubeClient: client, Namespace: namespace}
	created, err := s.Create(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"stanch-keys", "stanch-pki"}, created)
	before := readSecrets(t, client)
	require.Len(t, before, 2)
	require.Equal(t, string(before["stanch-pki"]["ca.crt"]), publishedCA(t, client))
	for name, files := range before {
		for file, content := range files {
			require.NotEmpty(t, content, "%s/%s", name, file)
		}
	}

	created, err = s.Create(t.Context())
	require.NoError(t, err)
	require.Empty(t, created)
	require.Equal(t, before, readSecrets(t, client))

	// The chart's Temporal can be added later.
	s.Temporal = true
	created, err = s.Create(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"stanch-temporal", "stanch-temporal-server"}, created)
	after := readSecrets(t, client)
	require.Equal(t, before["stanch-keys"], after["stanch-keys"])
	require.Equal(t, before["stanch-pki"], after["stanch-pki"])
}

// The worker verifies the chart's Temporal at the name of its Service, and has a certificate of the same authority,
// which is not that of the nodes.
func TestCertificatesOfTemporalFitEachOther(t *testing.T) {
	client := fake.NewClientset()
	_, err := installation.Secrets{KubeClient: client, Namespace: namespace, Temporal: true}.Create(t.Context())
	require.NoError(t, err)
	all := readSecrets(t, client)
	server, worker := all["stanch-temporal-server"], all["stanch-temporal"]
	for _, files := range []map[string][]byte{server, worker} {
		require.Equal(t, []string{"ca.crt", "tls.crt", "tls.key"}, slices.Sorted(maps.Keys(files)))
	}
	require.Equal(t, server["ca.crt"], worker["ca.crt"])
	require.NotEqual(t, all["stanch-pki"]["ca.crt"], worker["ca.crt"])
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(worker["ca.crt"]))
	for _, c := range []struct {
		files map[string][]byte
		names []string
		usage x509.ExtKeyUsage
	}{
		{
			server,
			[]string{"stanch-temporal.stanch-system.svc", gatewayrpc.ServerName, "127.0.0.1"},
			x509.ExtKeyUsageServerAuth,
		},
		{worker, []string{""}, x509.ExtKeyUsageClientAuth},
	} {
		pair, err := tls.X509KeyPair(c.files["tls.crt"], c.files["tls.key"])
		require.NoError(t, err)
		for _, name := range c.names {
			_, err = pair.Leaf.Verify(x509.VerifyOptions{
				Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{c.usage},
			})
			require.NoError(t, err, name)
		}
	}
}

// Whoever restored only one of two secrets must not get a new key that does not fit the other.
func TestHalfOfPairIsRefused(t *testing.T) {
	for have, other := range map[string]string{"stanch-keys": "stanch-pki", "stanch-pki": "stanch-keys"} {
		t.Run(have, func(t *testing.T) {
			client := fake.NewClientset(newSecret(have, map[string][]byte{"a": []byte("b")}))
			s := installation.Secrets{KubeClient: client, Namespace: namespace, Temporal: true}
			created, err := s.Create(t.Context())
			require.EqualError(t, err, "create the installation's keys: of the secrets stanch-keys and stanch-pki in the "+
				"namespace stanch-system only "+have+" exists; they belong together: restore the other, or delete this one "+
				"for a new installation")
			require.Empty(t, created)
			require.NotContains(t, readSecrets(t, client), other)
			require.Len(t, readSecrets(t, client), 1)
		})
	}
}

func TestFirstSecretIsRemovedIfSecondCannotBeCreated(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s := a.(clienttesting.CreateAction).GetObject().(*corev1.Secret)
		return s.Name == "stanch-pki", nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, s.Name, nil)
	})
	created, err := installation.Secrets{KubeClient: client, Namespace: namespace}.Create(t.Context())
	require.ErrorContains(t, err, "create the secret stanch-system/stanch-pki: ")
	require.True(t, apierrors.IsForbidden(err))
	require.Empty(t, created)
	require.Empty(t, readSecrets(t, client))
	var attempted []string
	for _, a := range client.Actions() {
		if c, ok := a.(clienttesting.CreateAction); ok && a.GetVerb() == "create" {
			attempted = append(attempted, c.GetObject().(metav1.Object).GetName())
		}
	}
	require.Equal(t, []string{"stanch-keys", "stanch-pki"}, attempted, "and nothing more")
}

func TestUnreadableSecretsAreNotReplaced(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewServiceUnavailable("etcd has no leader")
	})
	_, err := installation.Secrets{KubeClient: client, Namespace: namespace}.Create(t.Context())
	require.EqualError(t, err, "read the secret stanch-system/stanch-keys: etcd has no leader")
	require.Empty(t, readSecrets(t, client))
}

func TestChangedAuthorityIsPublished(t *testing.T) {
	client := fake.NewClientset(newSecret("stanch-keys", nil),
		newSecret("stanch-pki", map[string][]byte{"ca.crt": []byte("first")}))
	s := installation.Secrets{KubeClient: client, Namespace: namespace}
	_, err := s.Create(t.Context())
	require.NoError(t, err)
	require.Equal(t, "first", publishedCA(t, client))

	_, err = client.CoreV1().Secrets(namespace).Update(t.Context(),
		newSecret("stanch-pki", map[string][]byte{"ca.crt": []byte("second")}), metav1.UpdateOptions{})
	require.NoError(t, err)
	_, err = s.Create(t.Context())
	require.NoError(t, err)
	require.Equal(t, "second", publishedCA(t, client))
}

func TestAuthorityWithoutCertificateIsRefused(t *testing.T) {
	client := fake.NewClientset(newSecret("stanch-keys", nil), newSecret("stanch-pki", nil))
	_, err := installation.Secrets{KubeClient: client, Namespace: namespace}.Create(t.Context())
	require.EqualError(t, err, "read the secret stanch-system/stanch-pki: it has no ca.crt; create it with "+
		"`stanch cert authority`")
}

// With new keys, an existing installation could not read its data.
func TestUpgradeCreatesNoNewKeys(t *testing.T) {
	client := fake.NewClientset()
	s := installation.Secrets{KubeClient: client, Namespace: namespace, Temporal: true, ExistingKeys: true}
	_, err := s.Create(t.Context())
	require.ErrorContains(t, err, "the keys of this installation are missing: restore the secrets stanch-keys and stanch-pki")
	require.Empty(t, readSecrets(t, client))

	s.ExistingKeys = false
	_, err = s.Create(t.Context())
	require.NoError(t, err)
	s.ExistingKeys = true
	created, err := s.Create(t.Context())
	require.NoError(t, err)
	require.Empty(t, created)
}

func TestDataOfRunningInstallationIsNotDeleted(t *testing.T) {
	client := fake.NewClientset(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{
		Name: "stanch-sensor", Namespace: namespace,
	}})
	s := installation.Secrets{KubeClient: client, Namespace: namespace}
	_, err := s.Create(t.Context())
	require.NoError(t, err)
	require.ErrorContains(t, s.Delete(t.Context()), "Stanch is installed in the namespace stanch-system; uninstall it first")
	require.Len(t, readSecrets(t, client), 2)
}

func TestDeletionLeavesNothingButOtherSecrets(t *testing.T) {
	at := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Namespace: namespace} }
	client := fake.NewClientset(newSecret("stanch-slack", nil),
		&corev1.PersistentVolumeClaim{ObjectMeta: at("stanch-evidence")},
		&corev1.PersistentVolumeClaim{ObjectMeta: at("stanch-temporal")},
		&corev1.ConfigMap{ObjectMeta: at("stanch-used-grants")})
	s := installation.Secrets{KubeClient: client, Namespace: namespace, Temporal: true}
	_, err := s.Create(t.Context())
	require.NoError(t, err)
	require.Len(t, readSecrets(t, client), 5)
	require.NoError(t, s.Delete(t.Context()))
	require.Equal(t, []string{"stanch-slack"}, slices.Collect(maps.Keys(readSecrets(t, client))))
	left, err := client.CoreV1().ConfigMaps(namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, left.Items)
	claims, err := client.CoreV1().PersistentVolumeClaims(namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, claims.Items)
	require.NoError(t, s.Delete(t.Context()), "what is gone is no error")
}
