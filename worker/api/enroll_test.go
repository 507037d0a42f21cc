package api_test

import (
	"context"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"stanch/sensors/gatewayrpc"
	"stanch/worker/api"
	"stanch/worker/authority"
	"stanch/worker/decisions"
	"stanch/worker/nodeserver"
)

func TestSensorEnrollsOnlyForItsOwnNode(t *testing.T) {
	pki, err := authority.OpenOrCreatePKI(t.TempDir())
	require.NoError(t, err)
	kube := fake.NewClientset(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "stanch-system", Name: "sensor-a",
		UID: "uid-a",
	}, Spec: corev1.PodSpec{NodeName: "node-a", ServiceAccountName: "stanch-sensor"}})
	good := func() authenticationv1.TokenReviewStatus {
		return authenticationv1.TokenReviewStatus{
			Authenticated: true, Audiences: []string{nodeserver.EnrollAudience},
			User: authenticationv1.UserInfo{
				Username: "system:serviceaccount:stanch-system:stanch-sensor",
				Extra: map[string]authenticationv1.ExtraValue{
					"authentication.kubernetes.io/pod-name": {"sensor-a"}, "authentication.kubernetes.io/pod-uid": {"uid-a"},
					"authentication.kubernetes.io/node-name": {"node-a"},
				},
			},
		}
	}
	status := good()
	kube.PrependReactor("create", "tokenreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		review := a.(k8stesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		if review.Spec.Token != "the-pods-token" || len(review.Spec.Audiences) != 1 ||
			review.Spec.Audiences[0] != nodeserver.EnrollAudience {
			return true, &authenticationv1.TokenReview{}, nil
		}
		return true, &authenticationv1.TokenReview{Status: status}, nil
	})
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	enroll := &nodeserver.Enroller{
		KeySet: auth.KeySet(), Kube: kube, Namespace: "stanch-system", ServiceAccount: "stanch-sensor",
		Log: slog.New(slog.DiscardHandler),
		SignCSR: func(_ context.Context, node string, csr []byte) ([]byte, error) {
			return pki.SignCSR(authority.RoleNode, node, csr)
		},
	}
	remote := &api.Cluster{
		API: api.API{Service: &decisions.Service{}}, Kube: kube,
		Enroller: enroll,
	}
	server := httptest.NewUnstartedServer(remote.HTTPServer().Handler)
	server.TLS, err = pki.RenewingTLSConfig(authority.RoleGateway, "gateway", gatewayrpc.ServerName)
	require.NoError(t, err)
	server.TLS.ClientAuth = 0
	server.StartTLS()
	t.Cleanup(server.Close)

	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	e := gatewayrpc.Enrollment{
		GatewayURL: server.URL, TokenFile: write("token", "the-pods-token\n"),
		CAFile: write("ca.crt", string(pki.CACertPEM())), CertificatePath: filepath.Join(dir, "node.pem"),
		PinnedKeysPath: filepath.Join(dir, gatewayrpc.AuthorityKeysFile),
	}

	for want, bend := range map[string]func(){
		"not for the audience": func() { status.Authenticated = false },
		"not the sensor's":     func() { status.User.Username = "system:serviceaccount:shop:web" },
		"not bound to a pod":   func() { delete(status.User.Extra, "authentication.kubernetes.io/pod-uid") },
		"no longer exists": func() {
			status.User.Extra["authentication.kubernetes.io/pod-uid"] = []string{"uid-before"}
		},
		"not the node of its pod": func() {
			status.User.Extra["authentication.kubernetes.io/node-name"] = []string{"node-b"}
		},
		"get the token's pod": func() {
			status.User.Extra["authentication.kubernetes.io/pod-name"] = []string{"other"}
		},
	} {
		status = good()
		bend()
		_, _, err := e.OpenOrEnroll(t.Context())
		require.ErrorContains(t, err, want)
		require.NoFileExists(t, e.CertificatePath)
	}
	status = good()
	identity, pins, err := e.OpenOrEnroll(t.Context())
	require.NoError(t, err)
	c := identity.Certificate()
	require.Equal(t, "node-a", c.Subject.CommonName)
	require.Equal(t, []string{authority.RoleNode}, c.Subject.OrganizationalUnit)
	require.Empty(t, c.DNSNames)
	require.False(t, identity.NeedsRenewal(time.Now()))

	require.NoError(t, os.Remove(e.TokenFile))
	again, kept, err := e.OpenOrEnroll(t.Context())
	require.NoError(t, err, "the stored certificate is used")
	require.Equal(t, c.SerialNumber, again.Certificate().SerialNumber)

	require.Equal(t, auth.Keyring(), pins.Keyring())
	require.Equal(t, auth.Keyring(), kept.Keyring(), "an offline sensor has the keys after a restart")

	// A later response with another authority does not change the pinned keys.
	other, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	enroll.KeySet = other.KeySet()
	write("token", "the-pods-token\n")
	require.NoError(t, os.Remove(e.CertificatePath))
	_, kept, err = e.OpenOrEnroll(t.Context())
	require.NoError(t, err)
	require.Equal(t, auth.Keyring(), kept.Keyring())

	raw, err := os.ReadFile(e.CertificatePath)
	require.NoError(t, err)
	block, rest := pem.Decode(raw)
	require.Equal(t, "CERTIFICATE", block.Type)
	require.NotEmpty(t, rest, "the certificate and its key are in one file")
	info, err := os.Stat(e.CertificatePath)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}
