package integrations_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

func TestFalcoPluginAlertIsAboutItsAccount(t *testing.T) {
	plugin := func(source, fields string) string {
		return fmt.Sprintf(
			`{"priority":"Error","rule":"R","source":%q,"time":"2026-11-23T03:00:00Z","hostname":"falco-0","output_fields":{%s}}`,
			source,
			fields,
		)
	}
	for name, c := range map[string]struct {
		alert string
		want  sensors.Subject
	}{
		"a service account": {plugin("k8s_audit",
			`"ka.verb":"get","ka.target.resource":"secrets","ka.target.name":"s","ka.user.name":"system:serviceaccount:ci:runner"`), sensors.Subject{Kind: "ServiceAccount", Namespace: "ci", Name: "runner"}},
		"a user of the cluster": {
			plugin("k8s_audit", `"ka.verb":"get","ka.target.resource":"secrets","ka.user.name":"ines"`),
			sensors.Subject{Kind: "User", Name: "ines"},
		},
		"a user of AWS": {plugin("aws_cloudtrail",
			`"ct.name":"StopLogging","ct.user.arn":"arn:aws:iam::111122223333:user/rosa","ct.user":"rosa","ct.user.accountid":"111122223333"`), sensors.Subject{Kind: "User", Name: "arn:aws:iam::111122223333:user/rosa"}},
		"a user without an ARN": {
			plugin("aws_cloudtrail",
				`"ct.name":"ConsoleLogin","ct.user":"rosa","ct.user.accountid":"111122223333"`),
			sensors.Subject{Kind: "User", Name: "111122223333/rosa"},
		},
		"a role": {plugin("aws_cloudtrail",
			`"ct.name":"StopLogging","ct.user.arn":"arn:aws:sts::111122223333:assumed-role/deploy/s1","ct.user.accountid":"111122223333"`), sensors.Subject{Kind: "Role", Name: "111122223333/deploy"}},
		"account only": {
			plugin("aws_cloudtrail", `"ct.name":"ConsoleLogin","ct.user.accountid":"111122223333"`),
			sensors.Subject{Kind: "Account", Name: "111122223333"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, decodeAlert(t, integrations.DecodeFalco, c.alert).Event.Subject)
		})
	}
	for _, source := range []string{"okta", "github", "gcp_auditlog"} {
		_, err := integrations.DecodeFalco([]byte(plugin(source, `"x.user":"rosa"`)))
		require.ErrorContains(t, err, fmt.Sprintf("unsupported Falco source %q", source))
	}
	d := decodeAlert(t, integrations.DecodeFalco, plugin("my_plugin", `"container.id":"abcdef012345"`))
	require.Equal(t, "abcdef012345", d.Event.Container.ID, "an alert of an unknown plugin about a container is accepted")
}

func TestKubeArmorOnDockerHostNamesNoPod(t *testing.T) {
	alert := func(namespace, pod string) string {
		return fmt.Sprintf(
			`{"Timestamp":1795932000,"HostName":"h","NamespaceName":%q,"PodName":%q,"Owner":{},"ContainerID":"ab12ab12ab12ab12","ContainerName":"till","PolicyName":"p","Severity":"7","Type":"MatchedPolicy","Operation":"Process","Resource":"/usr/bin/apt update","Action":"Block","Result":"Permission denied"}`,
			namespace,
			pod,
		)
	}
	for _, c := range [][2]string{{"container_namespace", "till"}, {"Unknown", "Unknown"}, {"shop", "Unknown"}} {
		d := decodeAlert(t, integrations.DecodeKubeArmor, alert(c[0], c[1]))
		require.Empty(t, d.Event.Container.Pod, c)
		require.Equal(t, "ab12ab12ab12ab12", d.Event.Container.ID)
	}
	require.Equal(t, "web-0", decodeAlert(t, integrations.DecodeKubeArmor,
		alert("shop", "web-0")).Event.Container.Pod.Name)
}

func TestAuditEventOfRejectedLoginHasNoUser(t *testing.T) {
	event := func(user, code string) string {
		return `{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"a","stage":"ResponseStarted","requestURI":"/api/v1/nodes/node-b","verb":"get","user":{` + user + `},"sourceIPs":["10.30.4.9"],"userAgent":"kubelet/v1.33.1","objectRef":{"resource":"nodes","name":"node-b"},"requestReceivedTimestamp":"2026-11-29T06:00:00.1Z","responseStatus":{"code":` + code + `}}`
	}
	e := decodeOneAuditEvent(t, event("", "401"))
	require.Empty(t, e.Actor)
	require.Equal(t, []string{"10.30.4.9"}, e.Audit.SourceIPs)
	require.Equal(t, "kubelet/v1.33.1", e.Audit.UserAgent)
	require.Equal(t, 401, e.Audit.StatusCode)
	_, err := integrations.DecodeKubernetesAudit([]byte(event("", "200")))
	require.ErrorContains(t, err, "missing user", "only a rejected login has no user")
}

func TestFailedLoginHasAnError(t *testing.T) {
	record := func(event, more string) sensors.Cloud {
		all, err := integrations.DecodeCloudTrail(
			[]byte(
				`{"eventID":"c1","eventTime":"2026-11-29T06:00:00Z","eventSource":"signin.amazonaws.com","eventName":"` + event +
					`","userIdentity":{"type":"IAMUser","userName":"nadia","accountId":"111122223333"}` + more + `}`,
			),
		)
		require.NoError(t, err)
		return all[0].Cloud
	}
	for name, c := range map[string]struct{ event, more, want string }{
		"a wrong password": {
			"ConsoleLogin",
			`,"errorMessage":"Failed authentication","responseElements":{"ConsoleLogin":"Failure"}`, "Failed authentication",
		},
		"failure only in the response": {
			"ConsoleLogin", `,"responseElements":{"ConsoleLogin":"Failure"}`,
			"Failed authentication",
		},
		"failure only in the message": {
			"ConsoleLogin", `,"errorMessage":"No username found in supplied account"`,
			"No username found in supplied account",
		},
		"wrong second factor": {"CheckMfa", `,"responseElements":{"CheckMfa":"Failure"}`, "Failed authentication"},
		"rejected role": {
			"SwitchRole", `,"responseElements":{"SwitchRole":"Failure"}`,
			"Failed authentication",
		},
		"IAM Identity Center": {
			"UserAuthentication", `,"serviceEventDetails":{"UserAuthentication":"Failure"}`,
			"Failed authentication",
		},
		"a code":           {"AssumeRole", `,"errorCode":"AccessDenied","errorMessage":"no"`, "AccessDenied"},
		"successful login": {"ConsoleLogin", `,"responseElements":{"ConsoleLogin":"Success"}`, ""},
		"details in another format": {
			"ConsoleLogin",
			`,"serviceEventDetails":[1],"responseElements":{"ConsoleLogin":"Success"}`, "",
		},
	} {
		require.Equal(t, c.want, record(c.event, c.more).ErrorCode, name)
	}
}
