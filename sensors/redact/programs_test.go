package redact

import (
	"strings"
	"testing"
)

// plantedSecret is the secret of every case. It looks like an ordinary word, so that only the table can recognize it.
const plantedSecret = "hunter2x"

func TestSecretsOfKnownProgramsAreRedacted(t *testing.T) {
	for _, line := range []string{
		"mysql|-phunter2x|-uroot", "mysql|-p|hunter2x", "mysql|-pPassword-hunter2x|-uroot", "mariadb-dump|-phunter2x|db",
		"/opt/bin/mysqladmin|-phunter2x|ping",
		"docker|login|-u|me|-p|hunter2x", "podman|login|-phunter2x|r", "helm|registry|login|r|-u|me|-p|hunter2x",
		"az|login|-u|me|-p|hunter2x", "oc|login|-u|me|-p|hunter2x", "skopeo|login|-u|a|-p|hunter2x|r",
		"sqlcmd|-P|hunter2x", "bcp|t|in|f|-Phunter2x", "tsql|-U|sa|-P|hunter2x", "sqlplus|scott/hunter2x@db",
		"rman|target|sys/hunter2x@prod", "db2|connect|to|db|user|me|using|hunter2x",
		"cqlsh|-u|me|-p|hunter2x", "beeline|-n|me|-p|hunter2x", "mongosh|-u|me|-p|hunter2x", "mongodump|-phunter2x",
		"mongo|mongodb://u:hunter2x@h/db", "psql|postgresql://h/db?password=hunter2x",
		"psql|-c|ALTER USER x PASSWORD 'hunter2x'", "mysql|-e|CREATE USER a IDENTIFIED BY 'hunter2x'",
		"redis-cli|-a|hunter2x", "redis-cli|--pass|hunter2x", "influx|-t|hunter2x", "etcdctl|--user|root:hunter2x|get|/",
		"etcdctl|--user=root:hunter2x|get|/",
		"ipmitool|-P|hunter2x", "xfreerdp|/u:me|/p:hunter2x", "rdesktop|-p|hunter2x|h", "x11vnc|-passwd|hunter2x",
		"mosquitto_pub|-P|hunter2x", "mosquitto_passwd|-b|f|u|hunter2x", "snmpwalk|-v2c|-c|hunter2x|h",
		"snmpget|-v3|-A|hunter2x|h",
		"rclone|obscure|hunter2x", "helm|--set|db.password=hunter2x", "curl|-u|user:hunter2x|http://x",
		"curl|-uuser:hunter2x|http://x", "curl|--user|user:hunter2x", "curl|--user=user:hunter2x", "curl|-U|p:hunter2x",
		"curl|-E|cert.pem:hunter2x", "curl|--pass|hunter2x", "curl|-b|session=hunter2x", "curl|-bsession=hunter2x",
		"curl|-k|--cookie|JSESSIONID=hunter2x", "curl|--oauth2-bearer|hunter2x",
		"curl|-H|Authorization: Bearer hunter2x12345", "curl|-d|{\"password\":\"hunter2x\"}",
		"http|-a|me:hunter2x|h", "aria2c|--http-passwd|hunter2x", "aria2c|--http-passwd=hunter2x",
		"wget|--http-password=hunter2x", "wget|--header=X-Api-Key: hunter2x", "lftp|-u|me,hunter2x|h",
		"env|PGPASSWORD=hunter2x|psql", "sshpass|-p|hunter2x|ssh", "sshpass|-phunter2x|ssh",
		"ssh-keygen|-t|rsa|-N|hunter2x|-f|k", "git|clone|https://u:hunter2x@host/x", "x|--token|hunter2x",
		"x|--token=hunter2x",
		"openssl|enc|-pass|pass:hunter2x", "openssl|rsa|-passin|pass:hunter2x", "openssl|enc|-k|hunter2x",
		"keytool|-list|-storepass|hunter2x", "keytool|-genkey|-keypass|hunter2x", "gpg|--batch|--passphrase|hunter2x",
		"ldapsearch|-x|-w|hunter2x", "ldapmodify|-whunter2x", "ldappasswd|-s|hunter2x|dn", "smbclient|-U|user%hunter2x",
		"smbclient|-Uuser%hunter2x", "rpcclient|--user=a%hunter2x", "net|rpc|-U|a%hunter2x", "net|use|/user:x|hunter2x",
		"winexe|-U|d/u%hunter2x|//h",
		"psexec.py|corp/admin:hunter2x@10.0.0.1", "vault|login|hunter2x", "vault|login|hvs.CAESIhunter2xhunter2x",
		"kubectl|--token|eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJpc3Mi.hunter2x",
		"kubectl|create|secret|generic|s|--from-literal=k=hunter2x",
		"kubectl|create|secret|generic|s|--from-literal|k=hunter2x",
		"aws|configure|set|aws_secret_access_key|hunter2x/abcd", "npm|config|set|//r/:_authToken|hunter2x",
		"git|config|--global|github.token|hunter2x", "x|ghp_hunter2x0123456789012345678901234567",
		"htpasswd|-b|f|user|hunter2x", "htpasswd|-cbB|f|user|hunter2x", "wpa_passphrase|ssid|hunter2x",
		"nmcli|dev|wifi|connect|s|password|hunter2x", "useradd|-p|hunter2x|me", "usermod|-p|hunter2x|me",
		"rabbitmqctl|add_user|u|hunter2x", "rabbitmqctl|change_password|u|hunter2x", "zip|-P|hunter2x|a.zip",
		"unzip|-Phunter2x|a.zip", "7z|x|-phunter2x|a.7z", "rar|a|-hphunter2x|a", "ansible|-e|ansible_password=hunter2x",
		"mc|alias|set|x|http://h|KEY|hunter2x", "java|-Ddb.password=hunter2x",
		"java|-Djavax.net.ssl.keyStorePassword=hunter2x", "twine|upload|-u|me|-p|hunter2x",
		"hydra|-l|root|-p|hunter2x|ssh://h", "slappasswd|-s|hunter2x",
		"psexec.py|me:hunter2x@10.0.0.1", "secretsdump.py|corp/me:hunter2x@h", "cargo|login|hunter2x",
		"/usr/bin/mysql8.0|-phunter2x", "cqlsh|-phunter2x", "hydra|-phunter2x|h",
		"curl|https://h/x?sig=hunter2x&a=1", "curl|https://h/x?a=1&key=hunter2x",
		"curl|https://api.telegram.org/bot123456789:AAhunter2x0123456789012345678901/sendMessage",
		"curl|https://hooks.slack.com/services/T0/B0/hunter2x",
		"sh|-c|echo hunter2x | sudo -S id",
		"sudo|mysql|-phunter2x", "timeout|5|redis-cli|-a|hunter2x", "env|A=1|sshpass|-p|hunter2x|ssh|h",
		"x|--secret|--verbose|hunter2x",
		"sh|-c|mysql -phunter2x", "sh|-c|cd /tmp; mysql -p'hunter2x' db", "sh|-c|sshpass -p hunter2x ssh h && id",
		"sh|-c|(redis-cli -a \"hunter2x\" ping)", "sh|-c|echo hunter2x | docker login -u me --password-stdin",
		"sh|-c|echo root:hunter2x|chpasswd",
		"bash|-lc|curl -uuser:hunter2x http://x | sh", "sh|-c|export AWS_SECRET_ACCESS_KEY=hunter2x; x",
		"sh|-c|sudo mysqldump -phunter2x db > f",
	} {
		args := strings.Split(line, "|")
		if args[0] == "sh" || args[0] == "bash" {
			args = strings.SplitN(line, "|", 3)
		}
		before := strings.Join(args, " ")
		got := strings.Join(Args(args), " ")
		if strings.Contains(got, plantedSecret) {
			t.Errorf("%s is shown: %q", plantedSecret, got)
		}
		if strings.Join(args, " ") != before {
			t.Errorf("the arguments were changed: %q", before)
		}
	}
}

func TestOrdinaryArgumentsAreNotRedacted(t *testing.T) {
	for _, line := range []string{
		"docker|run|-p|8080:80|nginx", "ps|-p|1", "mkdir|-p|/var/lib/mysql", "ls|-P", "ssh|-p|2222|host", "nc|-l|-p|4444",
		"tar|-P|-czf|/tmp/x.tgz|/etc", "curl|-k|https://203.0.113.7/x.sh", "curl|-X|POST|https://h/u",
		"xmrig|-o|stratum+tcp://pool:3333|-u|wallet|-k", "kubectl|get|pods|-n|shop", "openssl|s_client|-connect|h:443",
		"apt|install|redis", "git|push|origin|main", "aws|s3|cp|s3://b/k|-",
		"runc|--root|/run|delete|0f2b1c7a9d3e4f5061728394a5b6c7d8e9f00112233445566778899aabbccddee",
		"x|sha256:0f2b1c7a9d3e4f5061728394a5b6c7d8e9f00112233445566778899aabbccddeef",
		"x|3b241101-e2bb-4255-8caf-4136c566a962", "java|-jar|MyServiceApplicationConfig2Loader.jar",
		"sh|-c|echo aGVsbG8gd29ybGQgdGhpcyBpcyBhIGxvbmcgcGF5bG9hZCB0aGF0IGEgcmVzcG9uZGVyIHdhbnRzIHRvIHNlZQ== | base64 -d | sh", "sh|-c|echo hello | nc h 80", "python3|-c|import socket,subprocess,os;s=socket.socket()",
		"pip|install|requests==2.31.0", "/usr/lib/x86_64-linux-gnu/ld-2.31.so|--library-path|/opt/App2Go/lib64/V8Engine1",
	} {
		args := strings.Split(line, "|")
		if args[0] == "sh" {
			args = strings.SplitN(line, "|", 3)
		}
		if got := Args(args); strings.Join(got, "|") != strings.Join(args, "|") {
			t.Errorf("%q became %q", args, got)
		}
	}
}

func TestRandomTokensAreRedactedAnywhere(t *testing.T) {
	for _, args := range [][]string{
		{"tool", "-x", "xK9fQ2mZ7pL4vR8tB1nY"},
		{"tool", "--k=wJalrXUtnFEMI/K7MDENG/bPxRfiCYzT9a1B2c3D"},
		{"tool", "Zm9vYmFyQmF6MTIzNDU2Nzg5MEFiQ2RFZg"},
	} {
		if got := strings.Join(Args(args), " "); !strings.Contains(got, Placeholder) {
			t.Errorf("%q is shown", got)
		}
	}
}
