package redact

import (
	"regexp"
	"slices"
	"strings"
)

// program says where the command line of a program carries a secret that its option's name does not show. The zero value
// of each field is "nowhere".
type program struct {
	names []string // as executed, without the directory; a trailing * matches any rest: mysql*, for mysqldump
	after string   // only behind this word: login, for `docker login -p`
	// next: the argument behind the option is the secret. attached: the rest of the same argument is.
	next, attached []string
	// pair: the option's value, attached or the next argument, is a user and a secret with sep (":" if "") between.
	pair []string
	sep  string
	// words: the argument behind the word is the secret.
	words []string
	// positional: behind the word, these arguments that are not options are secrets; the first is 1.
	positional map[string][]int
	// lastWith: with an option of one letter among these letters, the last argument is the secret.
	lastWith string
	// bare: an argument that is no option and has sep is a user and a secret: sqlplus scott/tiger@db.
	bare   bool
	source string // where the options are documented
}

// login are programs that log in to a registry or a cluster with -p.
var login = []string{"docker", "podman", "nerdctl", "buildah", "skopeo", "crane", "helm", "oras", "regctl", "oc", "az", "cf", "singularity", "apptainer"}

// programs is the table. Options whose name says what they hold (--password, -token) are known without it.
var programs = []program{
	{names: []string{"mysql*", "mariadb*"}, next: []string{"-p"}, attached: []string{"-p"}, source: "mysql(1): -p[password]; what follows a bare -p by mistake"},
	{names: []string{"mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport"}, next: []string{"-p"}, attached: []string{"-p"}, source: "mongosh(1)"},
	{names: []string{"redis-cli", "valkey-cli", "keydb-cli"}, next: []string{"-a"}, attached: []string{"-a"}, words: []string{"AUTH", "auth", "requirepass", "masterauth"}, source: "redis-cli --help"},
	{names: []string{"sqlcmd", "bcp", "tsql", "isql", "bsqldb", "freebcp"}, next: []string{"-P"}, attached: []string{"-P"}, source: "sqlcmd(1), tsql(1)"},
	{names: []string{"sqlplus", "sqlldr", "rman", "expdp", "impdp"}, bare: true, sep: "/", source: "SQL*Plus User's Guide: user/password@connect"},
	{names: []string{"cqlsh", "beeline", "hydra", "medusa", "nxc", "crackmapexec", "evil-winrm", "rdesktop", "ncftp*", "twine", "iscsiadm"}, next: []string{"-p"}, attached: []string{"-p"}, source: "each one's --help"},
	{names: []string{"mysqladmin", "mariadb-admin"}, words: []string{"password"}, next: []string{"-p"}, attached: []string{"-p"}, source: "mysqladmin(1): password NEW"},
	{names: []string{"psexec.py", "wmiexec.py", "smbexec.py", "atexec.py", "dcomexec.py", "secretsdump.py", "GetUserSPNs.py", "GetNPUsers.py", "mssqlclient.py", "smbclient.py"}, bare: true, sep: ":", source: "impacket: [domain/]user:password@target"},
	{names: []string{"cargo"}, positional: map[string][]int{"login": {1}}, source: "cargo login TOKEN"},
	{names: []string{"db2"}, words: []string{"using"}, source: "db2 connect to … user … using …"},
	{names: []string{"influx"}, next: []string{"-t"}, source: "influx --help"},
	{names: []string{"etcdctl"}, pair: []string{"--user"}, source: "etcdctl --help"},
	{names: []string{"sshpass"}, next: []string{"-p"}, attached: []string{"-p"}, source: "sshpass(1)"},
	{names: []string{"ssh-keygen"}, next: []string{"-N", "-P"}, source: "ssh-keygen(1)"},
	{names: []string{"curl"}, pair: []string{"--user", "--proxy-user", "--cert", "-u", "-U", "-E"}, next: []string{"-b", "--pass", "--proxy-pass", "--tlspassword", "--proxy-tlspassword"}, attached: []string{"-b"}, source: "curl(1)"},
	{names: []string{"http", "https", "xh", "xhs"}, pair: []string{"--auth", "-a"}, source: "https://httpie.io/docs/cli"},
	{names: []string{"aria2c", "axel"}, next: []string{"--http-passwd", "--ftp-passwd"}, source: "aria2c(1)"},
	{names: []string{"lftp"}, pair: []string{"-u"}, sep: ",", source: "lftp(1)"},
	{names: login, after: "login", next: []string{"-p"}, attached: []string{"-p"}, source: "docker-login(1), podman-login(1), az login --help"},
	{names: []string{"openssl"}, next: []string{"-k", "-K", "-pass", "-passin", "-passout", "-passwd", "-passcerts", "-srppass", "-psk"}, source: "openssl-passphrase-options(1)"},
	{names: []string{"keytool", "jarsigner"}, next: []string{"-storepass", "-keypass", "-srcstorepass", "-srckeypass", "-deststorepass", "-destkeypass"}, source: "keytool(1)"},
	{names: []string{"gpg", "gpg2"}, next: []string{"--passphrase"}, source: "gpg(1)"},
	{names: []string{"ldap*"}, next: []string{"-w", "-s", "-a"}, attached: []string{"-w"}, source: "ldapsearch(1), ldappasswd(1); -s and -a are a scope and aliases elsewhere"},
	{names: []string{"smbclient", "rpcclient", "smbget", "smbmap", "winexe", "smbcacls"}, pair: []string{"--user", "-U"}, sep: "%", next: []string{"-p"}, source: "smbclient(1): -U user%password"},
	{names: []string{"net", "net.exe"}, pair: []string{"-U"}, sep: "%", positional: map[string][]int{"use": {1, 2, 3}, "user": {2}}, source: "net(8); net use of Windows"},
	{names: []string{"ipmitool", "ipmipower"}, next: []string{"-P", "-p"}, source: "ipmitool(1)"},
	{names: []string{"snmp*"}, next: []string{"-c", "-A", "-X"}, source: "snmpcmd(1)"},
	{names: []string{"mosquitto_pub", "mosquitto_sub", "mosquitto_rr"}, next: []string{"-P"}, source: "mosquitto_pub(1)"},
	{names: []string{"mosquitto_passwd"}, lastWith: "b", source: "mosquitto_passwd(1)"},
	{names: []string{"xfreerdp*", "wlfreerdp*"}, attached: []string{"/p:", "/gp:", "/pth:"}, source: "xfreerdp(1)"},
	{names: []string{"vncviewer", "x11vnc"}, next: []string{"-passwd", "-viewpasswd"}, source: "x11vnc(1)"},
	{names: []string{"rclone"}, positional: map[string][]int{"obscure": {1}}, source: "rclone obscure --help"},
	{names: []string{"vault", "bao"}, positional: map[string][]int{"login": {1}, "unseal": {1}}, source: "vault login -h"},
	{names: []string{"mc"}, positional: map[string][]int{"set": {3, 4}, "add": {3, 4}}, source: "mc alias set ALIAS URL ACCESSKEY SECRETKEY"},
	{names: []string{"rabbitmqctl"}, positional: map[string][]int{"add_user": {2}, "change_password": {2}, "authenticate_user": {2}}, source: "rabbitmqctl(8)"},
	{names: []string{"htpasswd"}, lastWith: "b", source: "htpasswd(1): -b file user password"},
	{names: []string{"htdigest", "wpa_passphrase"}, positional: map[string][]int{"": {2}}, source: "wpa_passphrase(8)"},
	{names: []string{"useradd", "usermod", "groupadd", "groupmod"}, next: []string{"-p"}, source: "useradd(8)"},
	{names: []string{"nmcli"}, words: []string{"password", "wifi-sec.psk", "802-11-wireless-security.psk", "wep-key0"}, source: "nmcli(1)"},
	{names: []string{"zip", "unzip", "zipcloak"}, next: []string{"-P"}, attached: []string{"-P"}, source: "zip(1)"},
	{names: []string{"7z", "7za", "7zr", "7zz", "rar", "unrar"}, attached: []string{"-p", "-hp"}, source: "7z(1), rar(1)"},
	{names: []string{"aws", "npm", "pnpm", "yarn", "git", "pip", "pip3", "composer", "gcloud", "heroku", "bundle", "cargo", "poetry"}, words: []string{"*"}, source: "`config set NAME VALUE` where NAME says that it is a secret"},
	{names: []string{"kubectl"}, pair: []string{"--from-literal"}, sep: "=", source: "kubectl create secret --help"},
	{names: []string{"chpasswd", "slappasswd", "mkpasswd", "grub-mkpasswd-pbkdf2"}, next: []string{"-s"}, positional: map[string][]int{"": {1}}, source: "slappasswd(8), mkpasswd(1)"},
	{names: []string{"zabbix_sender", "zabbix_get"}, next: []string{"--tls-psk"}, source: "zabbix_sender(1)"},
}

// byName finds the rows of a program.
type byName struct {
	exact  map[string][]*program
	prefix [256][]stem // by the first letter: most names begin like none
}

type stem struct {
	begins string
	rows   []*program
}

func index(rows []program) byName {
	ix := byName{exact: map[string][]*program{}}
	for i := range rows {
		for _, name := range rows[i].names {
			if begins, ok := strings.CutSuffix(name, "*"); ok {
				ix.prefix[begins[0]] = append(ix.prefix[begins[0]], stem{begins, []*program{&rows[i]}})
				continue
			}
			ix.exact[name] = append(ix.exact[name], &rows[i])
		}
	}
	return ix
}

var known = index(programs)

func (ix *byName) of(argument string) []*program {
	if argument == "" || argument[0] == '-' || len(argument) > 256 {
		return nil
	}
	base := argument[strings.LastIndexByte(argument, '/')+1:]
	if rows := ix.exact[base]; rows != nil {
		return rows
	}
	if base == "" {
		return nil
	}
	for _, s := range ix.prefix[base[0]] {
		if strings.HasPrefix(base, s.begins) && !strings.ContainsAny(base, ":= ") {
			return s.rows
		}
	}
	return nil
}

// reader walks one command line with the rows of the programs that were named so far: a program may stand behind sudo,
// env or timeout.
type reader struct {
	rows  []*program
	words []string // arguments that are no options, since the program was named
	at    []int    // for each row, how many of words came before its program
	hide  *hidden  // what the next argument is
}

// hidden says how to hide an argument: the whole, or what follows sep.
type hidden struct{ sep string }

func (h hidden) apply(a string) string {
	if h.sep == "" {
		return Mark
	}
	if user, _, ok := strings.Cut(a, h.sep); ok {
		return user + h.sep + Mark
	}
	return a
}

// read returns the argument with its secret hidden, and whether a row of the table knew about it.
func (r *reader) read(args []string, i int) (string, bool) {
	a := args[i]
	if h := r.hide; h != nil {
		r.hide = nil
		return h.apply(a), true
	}
	for _, row := range r.rows {
		if row.after != "" && !slices.Contains(r.words, row.after) {
			continue
		}
		if out, ok := r.option(row, a); ok {
			return out, true
		}
		if row.lastWith != "" && i == len(args)-1 && flagged(args[:i], row.lastWith) {
			return Mark, true
		}
	}
	if strings.HasPrefix(a, "-") {
		return "", false
	}
	return r.word(a)
}

// letters are options of one letter each in one argument.
var letters = regexp.MustCompile(`^-[A-Za-z]+$`)

// option returns the argument if it is one of a row's options.
func (r *reader) option(row *program, a string) (string, bool) {
	sep := row.sep
	if sep == "" {
		sep = ":"
	}
	for _, o := range row.pair {
		rest, ok := strings.CutPrefix(a, o)
		switch {
		case letters.MatchString(a) && len(o) == 2 && len(a) > 2 && a[len(a)-1] == o[1]: // several in one: curl -sSu
			r.hide = &hidden{sep: sep}
			return a, true
		case !ok:
		case rest == "":
			r.hide = &hidden{sep: sep}
			return a, true
		case strings.HasPrefix(o, "--") && rest[0] == '=':
			return o + "=" + hidden{sep: sep}.apply(rest[1:]), true
		case !strings.HasPrefix(o, "--"):
			return o + hidden{sep: sep}.apply(rest), true
		}
	}
	for _, o := range row.next {
		if a == o {
			r.hide = &hidden{}
			return a, true
		}
		if rest, ok := strings.CutPrefix(a, o+"="); ok && rest != "" {
			return o + "=" + Mark, true
		}
	}
	for _, o := range row.attached {
		if rest, ok := strings.CutPrefix(a, o); ok && rest != "" {
			return o + Mark, true
		}
	}
	return "", false
}

// word returns the argument, which is no option, if it stands where a row has a secret, and remembers it.
func (r *reader) word(a string) (string, bool) {
	words := r.words
	r.words = append(r.words, a)
	for n, row := range r.rows {
		mine := words[r.at[n]:]
		if row.bare && strings.Contains(a, row.sep) {
			return hidden{sep: row.sep}.apply(a), true
		}
		if len(mine) > 0 && isWordOf(row, mine[len(mine)-1]) {
			return Mark, true
		}
		for before, places := range row.positional {
			from := 0
			if before != "" {
				if from = slices.Index(mine, before) + 1; from == 0 {
					continue
				}
			}
			if slices.Contains(places, len(mine)-from+1) {
				return Mark, true
			}
		}
	}
	for _, row := range known.of(a) {
		r.rows, r.at = append(r.rows, row), append(r.at, len(r.words))
	}
	return "", false
}

// isWordOf reports whether what follows a word is a secret.
func isWordOf(row *program, word string) bool {
	return slices.Contains(row.words, word) || len(row.words) == 1 && row.words[0] == "*" && isSecret(word)
}

// flagged reports whether one of the arguments is an option of single letters that has one of these letters.
func flagged(args []string, letters string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		return len(a) > 1 && a[0] == '-' && a[1] != '-' && strings.ContainsAny(a, letters)
	})
}
