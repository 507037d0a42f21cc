package sourceserver_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/integrations"
	"stanch/testenv/podapi"
	"stanch/worker/config"
	"stanch/worker/ingest"
	"stanch/worker/sourceserver"
)

// The ingester accepts what a decoder accepts, with the same subject.
func TestIngesterAcceptsDecodedDetections(t *testing.T) {
	const falco = `{"priority":"Critical","rule":"R","time":"2026-11-23T03:00:00Z","hostname":"node-a",`
	connected := podapi.Start(t)
	connected.AddPod("shop", "web-0", "1111-2222-3333", "node-a")
	for name, c := range map[string]struct{ kind, alert, alone, connected string }{
		"pod": {
			integrations.SourceFalco,
			falco + `"source":"syscall","output_fields":{"container.id":"111122223333","k8s.ns.name":"shop","k8s.pod.name":"web-0"}}`, "Container/web-0@node-a", "shop/Pod/web-0",
		},
		"invalid pod name": {
			integrations.SourceFalco,
			falco + `"source":"syscall","output_fields":{"container.id":"999922223333","k8s.ns.name":"shop","k8s.pod.name":"../secrets"}}`, "Container/999922223333@node-a", "Container/999922223333@node-a",
		},
		"container id": {
			integrations.SourceFalco,
			falco + `"source":"syscall","output_fields":{"container.id":"111122223333"}}`, "Container/111122223333@node-a",
			"shop/Pod/web-0",
		},
		"service account": {
			integrations.SourceFalco,
			falco + `"source":"k8s_audit","output_fields":{"ka.verb":"get","ka.target.resource":"secrets","ka.user.name":"system:serviceaccount:ci:runner"}}`, "ci/ServiceAccount/runner", "ci/ServiceAccount/runner",
		},
		"request about a pod": {
			integrations.SourceFalco,
			falco + `"source":"k8s_audit","output_fields":{"ka.verb":"create","ka.target.resource":"pods","ka.target.subresource":"exec","ka.target.namespace":"shop","ka.target.name":"web-0","ka.user.name":"ines"}}`, "User/ines", "shop/Pod/web-0",
		},
		"request about a deleted pod": {
			integrations.SourceFalco,
			falco + `"source":"k8s_audit","output_fields":{"ka.verb":"create","ka.target.resource":"pods","ka.target.subresource":"exec","ka.target.namespace":"shop","ka.target.name":"gone","ka.user.name":"ines"}}`, "User/ines", "User/ines",
		},
		"AWS user": {
			integrations.SourceFalco,
			falco + `"source":"aws_cloudtrail","output_fields":{"ct.name":"StopLogging","ct.user.arn":"arn:aws:iam::1:user/rosa"}}`, "User/arn:aws:iam::1:user/rosa", "User/arn:aws:iam::1:user/rosa",
		},
		"KubeArmor on Docker": {
			integrations.SourceKubeArmor,
			`{"Timestamp":1795932000,"HostName":"till-host","NamespaceName":"container_namespace","PodName":"till","ContainerID":"ab12ab12ab12ab12","ContainerName":"till","PolicyName":"p","Type":"MatchedPolicy","Operation":"Process","Resource":"/usr/bin/apt"}`, "Container/till@till-host", "Container/till@till-host",
		},
		"Tetragon": {
			integrations.SourceTetragon,
			`{"process_kprobe":{"process":{"pid":44,"binary":"/usr/bin/curl","start_time":"2026-11-29T06:00:00Z","docker":"111122223333011112222333301111"},"function_name":"tcp_connect","args":[{"sock_arg":{"family":"AF_INET","protocol":"IPPROTO_TCP","daddr":"169.254.169.254","dport":80}}],"action":"KPROBE_ACTION_POST","policy_name":"egress-watch"},"node_name":"node-a","time":"2026-11-29T06:00:00Z"}`, "Container/111122223333@node-a", "shop/Pod/web-0",
		},
		"Tracee": {
			integrations.SourceTracee,
			`{"timestamp":1795932000000000000,"processId":44,"processName":"sh","hostName":"node-a","containerId":"111122223333","container":{"id":"111122223333","name":"app"},"kubernetes":{"podName":"web-0","podNamespace":"shop","podUID":"1111-2222-3333"},"eventId":"6000","eventName":"anti_debugging","args":[],"metadata":{"Version":"1","Description":"d","Tags":null,"Properties":{"Severity":3,"signatureID":"TRC-1","signatureName":"S","MITRE ATT&CK":"Defense Evasion: Debugger Evasion"}}}`, "Container/app", "shop/Pod/web-0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for where, want := range map[string]string{"without a cluster": c.alone, "with one": c.connected} {
				report, err := integrations.DecoderForKind(c.kind)([]byte(c.alert))
				require.NoError(t, err)
				require.NotNil(t, report.Alert)
				i := newIngester(t, connected)
				if where == "without a cluster" {
					i.Kube = nil
				}
				require.NoError(t, i.Check(t.Context(), report.Alert, ""), where)
				require.Equal(t, "local/"+want, i.GroupingKey(*report.Alert), where)
			}
		})
	}
}

func TestSourceTokenIsAcceptedAsPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(tokenForSource("falco")), 0o600))
	f, err := sourceserver.New(newIngester(t, podapi.Start(t)),
		[]config.Source{{Name: "falco", TokenFile: file}}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	server := httptest.NewServer(f.HTTPServer().Handler)
	t.Cleanup(server.Close)
	post := func(auth func(*http.Request)) (int, http.Header) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/v1/tetragon",
			strings.NewReader(`{"process_exec":{}}`))
		require.NoError(t, err)
		auth(r)
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode, response.Header
	}
	code, _ := post(func(r *http.Request) { r.SetBasicAuth("falco", tokenForSource("falco")) })
	require.Equal(t, http.StatusAccepted, code)
	code, _ = post(func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+tokenForSource("falco")) })
	require.Equal(t, http.StatusAccepted, code)
	for _, wrong := range []string{"", "wrong", tokenForSource("other"), tokenForSource("falco") + "x"} {
		code, header := post(func(r *http.Request) { r.SetBasicAuth("falco", wrong) })
		require.Equal(t, http.StatusUnauthorized, code)
		require.Contains(t, header.Get("WWW-Authenticate"), "Basic")
	}
	code, _ = post(func(r *http.Request) { r.SetBasicAuth(tokenForSource("falco"), "") })
	require.Equal(t, http.StatusUnauthorized, code)
}

// newIngester returns an ingester that looks up pods at a server.
func newIngester(t *testing.T, server *podapi.Server) *ingest.Ingester {
	t.Helper()
	return &ingest.Ingester{
		Kube: server.Client(t), Config: config.Default(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}
