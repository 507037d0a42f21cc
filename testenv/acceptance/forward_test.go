package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
)

// `stanch forward` sends a Tetragon file: a match of a user's policy is an incident, started processes are not, and
// lost events are reported.
func TestForwardSendsFileOfAnotherSensor(t *testing.T) {
	d := newDetectionEndpoint(t)
	container, now := d.ContainerPrefix+"tetragon", time.Now().UTC().Format(time.RFC3339Nano)
	process := fmt.Sprintf(
		`"process":{"pid":7,"binary":"/bin/curl","arguments":"--token hunter2-PLANTED https://x","docker":%q}`,
		container,
	)
	file := filepath.Join(d.ConfigDir, "tetragon.log")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join([]string{
		`{"process_exec":{` + process + `},"node_name":"n","time":"` + now + `"}`,
		`{"process_kprobe":{` + process + `,"function_name":"tcp_connect","args":[{"sock_arg":{"daddr":"203.0.113.7","dport":3333,"protocol":"IPPROTO_TCP"}}],"policy_name":"pools","tags":["T1496","severity.high"]},"node_name":"n","time":"` + now + `"}`,
		`{"rate_limit_info":{"number_of_dropped_process_events":"12"},"node_name":"n","time":"` + now + `"}`,
		"nonsense",
	}, "\n")), 0o600))
	_, stderr, code := d.Run(t, "forward", "--from", "tetragon", "--to", d.url, "--token-file",
		filepath.Join(d.ConfigDir, "token"), "--once", file)
	require.Zero(t, code, stderr)
	require.Contains(t, stderr, "4 lines: 1 alerts accepted, 1 telemetry, 1 about health, 1 refused")
	require.Contains(t, stderr, "invalid Tetragon JSON")
	in := d.WaitForIncident(t, container, 20*time.Second, "its alert",
		func(in playbooks.Incident) bool { return in.TotalDetections == 1 })
	require.Equal(t, "elsewhere", in.Trigger.Source)
	require.Equal(t, "crypto-mining", string(in.Objective))
	require.NotContains(t, fmt.Sprintf("%+v", in), "hunter2")
	require.Contains(t, d.Output(), "a source lost events")

	// A list with one bad element costs that element, and says that sending it again is of no use.
	list := `[{"hello":1},{"process_kprobe":{` + process + `,"policy_name":"pools"},"time":"` + now + `"}]`
	got, text, err := d.post(&http.Client{Timeout: 10 * time.Second}, "/v1/tetragon", testSourceToken, []byte(list))
	require.NoError(t, err)
	require.Equal(t, http.StatusMultiStatus, got, text)
	require.Contains(t, text, `"accepted":1`)
	require.Contains(t, text, `{"line":1,"reason":"unknown kind of Tetragon event`)
}
