package redact

import (
	"regexp"
	"slices"
	"strings"
)

// programRule says where the command line of a program contains a secret that the option name does not reveal. The
// zero value of a field means "nowhere".
type programRule struct {
	names      []string // file names without the directory; a trailing * matches any suffix: mysql*, for mysqldump
	subcommand string   // the rule applies only after this word: login, for `docker login -p`
	// With secretInNextArg, the argument after the option is the secret. With secretInSameArg, the rest of the same
	// argument is.
	secretInNextArg, secretInSameArg []string
	// credentialPairOptions are options whose value, in the same or the next argument, is a user and a secret,
	// separated by separator (default ":").
	credentialPairOptions []string
	separator             string
	// secretAfterWords are words after which the next argument is a secret.
	secretAfterWords []string
	// secretPositions maps a word to the positions of secrets among the non-option arguments after it, from 1.
	secretPositions map[string][]int
	// secretLastArgFlags are single-letter flags with which the last argument is the secret.
	secretLastArgFlags string
	// bareCredentials reports whether a non-option argument that contains separator is a user and a secret: sqlplus
	// scott/tiger@db.
	bareCredentials bool
	documentation   string // where the options are documented
}

// registryLoginPrograms are programs that log in to a registry or a cluster with -p.
var registryLoginPrograms = []string{
	"docker", "podman", "nerdctl", "buildah", "skopeo", "crane", "helm", "oras",
	"regctl", "oc", "az", "cf", "singularity", "apptainer",
}

// programRules is the table of programs. Options whose name reveals a secret (--password, -token) are recognized
// without it.
var programRules = []programRule{
	{
		names: []string{"mysql*", "mariadb*"}, secretInNextArg: []string{"-p"}, secretInSameArg: []string{"-p"},
		documentation: "mysql(1): -p[password]; what follows a bare -p by mistake",
	},
	{
		names:           []string{"mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport"},
		secretInNextArg: []string{"-p"}, secretInSameArg: []string{"-p"}, documentation: "mongosh(1)",
	},
	{
		names: []string{"redis-cli", "valkey-cli", "keydb-cli"}, secretInNextArg: []string{"-a"},
		secretInSameArg: []string{"-a"}, secretAfterWords: []string{"AUTH", "auth", "requirepass", "masterauth"},
		documentation: "redis-cli --help",
	},
	{
		names: []string{"sqlcmd", "bcp", "tsql", "isql", "bsqldb", "freebcp"}, secretInNextArg: []string{"-P"},
		secretInSameArg: []string{"-P"}, documentation: "sqlcmd(1), tsql(1)",
	},
	{
		names: []string{"sqlplus", "sqlldr", "rman", "expdp", "impdp"}, bareCredentials: true, separator: "/",
		documentation: "SQL*Plus User's Guide: user/password@connect",
	},
	{
		names: []string{
			"cqlsh", "beeline", "hydra", "medusa", "nxc", "crackmapexec", "evil-winrm", "rdesktop", "ncftp*",
			"twine", "iscsiadm",
		}, secretInNextArg: []string{"-p"}, secretInSameArg: []string{"-p"},
		documentation: "each one's --help",
	},
	{
		names: []string{"mysqladmin", "mariadb-admin"}, secretAfterWords: []string{"password"},
		secretInNextArg: []string{"-p"}, secretInSameArg: []string{"-p"}, documentation: "mysqladmin(1): password NEW",
	},
	{
		names: []string{
			"psexec.py", "wmiexec.py", "smbexec.py", "atexec.py", "dcomexec.py", "secretsdump.py",
			"GetUserSPNs.py", "GetNPUsers.py", "mssqlclient.py", "smbclient.py",
		}, bareCredentials: true, separator: ":",
		documentation: "impacket: [domain/]user:password@target",
	},
	{names: []string{"cargo"}, secretPositions: map[string][]int{"login": {1}}, documentation: "cargo login TOKEN"},
	{names: []string{"db2"}, secretAfterWords: []string{"using"}, documentation: "db2 connect to … user … using …"},
	{names: []string{"influx"}, secretInNextArg: []string{"-t"}, documentation: "influx --help"},
	{names: []string{"etcdctl"}, credentialPairOptions: []string{"--user"}, documentation: "etcdctl --help"},
	{
		names: []string{"sshpass"}, secretInNextArg: []string{"-p"}, secretInSameArg: []string{"-p"},
		documentation: "sshpass(1)",
	},
	{names: []string{"ssh-keygen"}, secretInNextArg: []string{"-N", "-P"}, documentation: "ssh-keygen(1)"},
	{
		names: []string{"curl"}, credentialPairOptions: []string{"--user", "--proxy-user", "--cert", "-u", "-U", "-E"},
		secretInNextArg: []string{"-b", "--pass", "--proxy-pass", "--tlspassword", "--proxy-tlspassword"},
		secretInSameArg: []string{"-b"}, documentation: "curl(1)",
	},
	{
		names: []string{"http", "https", "xh", "xhs"}, credentialPairOptions: []string{"--auth", "-a"},
		documentation: "https://httpie.io/docs/cli",
	},
	{
		names: []string{"aria2c", "axel"}, secretInNextArg: []string{"--http-passwd", "--ftp-passwd"},
		documentation: "aria2c(1)",
	},
	{names: []string{"lftp"}, credentialPairOptions: []string{"-u"}, separator: ",", documentation: "lftp(1)"},
	{
		names: registryLoginPrograms, subcommand: "login", secretInNextArg: []string{"-p"}, secretInSameArg: []string{"-p"},
		documentation: "docker-login(1), podman-login(1), az login --help",
	},
	{names: []string{"openssl"}, secretInNextArg: []string{
		"-k", "-K", "-pass", "-passin", "-passout", "-passwd",
		"-passcerts", "-srppass", "-psk",
	}, documentation: "openssl-passphrase-options(1)"},
	{names: []string{"keytool", "jarsigner"}, secretInNextArg: []string{
		"-storepass", "-keypass", "-srcstorepass",
		"-srckeypass", "-deststorepass", "-destkeypass",
	}, documentation: "keytool(1)"},
	{names: []string{"gpg", "gpg2"}, secretInNextArg: []string{"--passphrase"}, documentation: "gpg(1)"},
	{
		names: []string{"ldap*"}, secretInNextArg: []string{"-w", "-s", "-a"}, secretInSameArg: []string{"-w"},
		documentation: "ldapsearch(1), ldappasswd(1); -s and -a are a scope and aliases elsewhere",
	},
	{
		names:                 []string{"smbclient", "rpcclient", "smbget", "smbmap", "winexe", "smbcacls"},
		credentialPairOptions: []string{"--user", "-U"}, separator: "%", secretInNextArg: []string{"-p"},
		documentation: "smbclient(1): -U user%password",
	},
	{
		names: []string{"net", "net.exe"}, credentialPairOptions: []string{"-U"}, separator: "%",
		secretPositions: map[string][]int{"use": {1, 2, 3}, "user": {2}}, documentation: "net(8); Windows net use",
	},
	{names: []string{"ipmitool", "ipmipower"}, secretInNextArg: []string{"-P", "-p"}, documentation: "ipmitool(1)"},
	{names: []string{"snmp*"}, secretInNextArg: []string{"-c", "-A", "-X"}, documentation: "snmpcmd(1)"},
	{
		names: []string{"mosquitto_pub", "mosquitto_sub", "mosquitto_rr"}, secretInNextArg: []string{"-P"},
		documentation: "mosquitto_pub(1)",
	},
	{names: []string{"mosquitto_passwd"}, secretLastArgFlags: "b", documentation: "mosquitto_passwd(1)"},
	{
		names: []string{"xfreerdp*", "wlfreerdp*"}, secretInSameArg: []string{"/p:", "/gp:", "/pth:"},
		documentation: "xfreerdp(1)",
	},
	{
		names: []string{"vncviewer", "x11vnc"}, secretInNextArg: []string{"-passwd", "-viewpasswd"},
		documentation: "x11vnc(1)",
	},
	{names: []string{"rclone"}, secretPositions: map[string][]int{"obscure": {1}}, documentation: "rclone obscure --help"},
	{
		names: []string{"vault", "bao"}, secretPositions: map[string][]int{"login": {1}, "unseal": {1}},
		documentation: "vault login -h",
	},
	{
		names: []string{"mc"}, secretPositions: map[string][]int{"set": {3, 4}, "add": {3, 4}},
		documentation: "mc alias set ALIAS URL ACCESSKEY SECRETKEY",
	},
	{names: []string{"rabbitmqctl"}, secretPositions: map[string][]int{
		"add_user": {2}, "change_password": {2},
		"authenticate_user": {2},
	}, documentation: "rabbitmqctl(8)"},
	{names: []string{"htpasswd"}, secretLastArgFlags: "b", documentation: "htpasswd(1): -b file user password"},
	{
		names: []string{"htdigest", "wpa_passphrase"}, secretPositions: map[string][]int{"": {2}},
		documentation: "wpa_passphrase(8)",
	},
	{
		names: []string{"useradd", "usermod", "groupadd", "groupmod"}, secretInNextArg: []string{"-p"},
		documentation: "useradd(8)",
	},
	{names: []string{"nmcli"}, secretAfterWords: []string{
		"password", "wifi-sec.psk", "802-11-wireless-security.psk",
		"wep-key0",
	}, documentation: "nmcli(1)"},
	{
		names: []string{"zip", "unzip", "zipcloak"}, secretInNextArg: []string{"-P"}, secretInSameArg: []string{"-P"},
		documentation: "zip(1)",
	},
	{
		names: []string{"7z", "7za", "7zr", "7zz", "rar", "unrar"}, secretInSameArg: []string{"-p", "-hp"},
		documentation: "7z(1), rar(1)",
	},
	{
		names: []string{
			"aws", "npm", "pnpm", "yarn", "git", "pip", "pip3", "composer", "gcloud", "heroku", "bundle", "cargo",
			"poetry",
		}, secretAfterWords: []string{"*"},
		documentation: "`config set NAME VALUE` where NAME indicates a secret",
	},
	{
		names: []string{"kubectl"}, credentialPairOptions: []string{"--from-literal"}, separator: "=",
		documentation: "kubectl create secret --help",
	},
	{
		names: []string{"chpasswd", "slappasswd", "mkpasswd", "grub-mkpasswd-pbkdf2"}, secretInNextArg: []string{"-s"},
		secretPositions: map[string][]int{"": {1}}, documentation: "slappasswd(8), mkpasswd(1)",
	},
	{
		names: []string{"zabbix_sender", "zabbix_get"}, secretInNextArg: []string{"--tls-psk"},
		documentation: "zabbix_sender(1)",
	},
}

// ruleIndex finds the rules of a program.
type ruleIndex struct {
	exact  map[string][]*programRule
	prefix [256][]prefixRules // by the first letter, because most names match no prefix
}

type prefixRules struct {
	prefix string
	rules  []*programRule
}

func buildRuleIndex(rows []programRule) ruleIndex {
	ix := ruleIndex{exact: map[string][]*programRule{}}
	for i := range rows {
		for _, name := range rows[i].names {
			if begins, ok := strings.CutSuffix(name, "*"); ok {
				ix.prefix[begins[0]] = append(ix.prefix[begins[0]], prefixRules{begins, []*programRule{&rows[i]}})
				continue
			}
			ix.exact[name] = append(ix.exact[name], &rows[i])
		}
	}
	return ix
}

var rulesByProgram = buildRuleIndex(programRules)

func (ix *ruleIndex) find(argument string) []*programRule {
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
		if strings.HasPrefix(base, s.prefix) && !strings.ContainsAny(base, ":= ") {
			return s.rules
		}
	}
	return nil
}

// argScanner scans one command line with the rules of the programs that occurred so far: a program may follow sudo,
// env or timeout.
type argScanner struct {
	rules            []*programRule
	positionals      []string    // non-option arguments so far
	positionalStarts []int       // for each rule, the number of positionals up to and including its program
	pendingMask      *secretMask // how to redact the next argument
}

// secretMask says how to redact an argument: completely, or the part after separator.
type secretMask struct{ separator string }

func (h secretMask) apply(a string) string {
	if h.separator == "" {
		return Placeholder
	}
	if user, _, ok := strings.Cut(a, h.separator); ok {
		return user + h.separator + Placeholder
	}
	return a
}

// redactArg returns the argument with its secret redacted, and whether a rule of the table applied.
func (r *argScanner) redactArg(args []string, i int) (string, bool) {
	a := args[i]
	if h := r.pendingMask; h != nil {
		r.pendingMask = nil
		return h.apply(a), true
	}
	for _, row := range r.rules {
		if row.subcommand != "" && !slices.Contains(r.positionals, row.subcommand) {
			continue
		}
		if out, ok := r.redactOption(row, a); ok {
			return out, true
		}
		if row.secretLastArgFlags != "" && i == len(args)-1 && hasShortFlag(args[:i], row.secretLastArgFlags) {
			return Placeholder, true
		}
	}
	if strings.HasPrefix(a, "-") {
		return "", false
	}
	return r.redactPositional(a)
}

// shortFlagsPattern matches single-letter flags in one argument.
var shortFlagsPattern = regexp.MustCompile(`^-[A-Za-z]+$`)

// redactOption returns the redacted argument and true if it is one of the rule's options.
func (r *argScanner) redactOption(row *programRule, a string) (string, bool) {
	sep := row.separator
	if sep == "" {
		sep = ":"
	}
	for _, o := range row.credentialPairOptions {
		rest, ok := strings.CutPrefix(a, o)
		switch {
		// combined flags: curl -sSu
		case shortFlagsPattern.MatchString(a) && len(o) == 2 && len(a) > 2 && a[len(a)-1] == o[1]:
			r.pendingMask = &secretMask{separator: sep}
			return a, true
		case !ok:
		case rest == "":
			r.pendingMask = &secretMask{separator: sep}
			return a, true
		case strings.HasPrefix(o, "--") && rest[0] == '=':
			return o + "=" + secretMask{separator: sep}.apply(rest[1:]), true
		case !strings.HasPrefix(o, "--"):
			return o + secretMask{separator: sep}.apply(rest), true
		}
	}
	for _, o := range row.secretInNextArg {
		if a == o {
			r.pendingMask = &secretMask{}
			return a, true
		}
		if rest, ok := strings.CutPrefix(a, o+"="); ok && rest != "" {
			return o + "=" + Placeholder, true
		}
	}
	for _, o := range row.secretInSameArg {
		if rest, ok := strings.CutPrefix(a, o); ok && rest != "" {
			return o + Placeholder, true
		}
	}
	return "", false
}

// redactPositional records a non-option argument. It returns the redacted argument and true if a rule has a secret at
// this position.
func (r *argScanner) redactPositional(a string) (string, bool) {
	words := r.positionals
	r.positionals = append(r.positionals, a)
	for n, row := range r.rules {
		mine := words[r.positionalStarts[n]:]
		if row.bareCredentials && strings.Contains(a, row.separator) {
			return secretMask{separator: row.separator}.apply(a), true
		}
		if len(mine) > 0 && isSecretWordOf(row, mine[len(mine)-1]) {
			return Placeholder, true
		}
		for before, places := range row.secretPositions {
			from := 0
			if before != "" {
				if from = slices.Index(mine, before) + 1; from == 0 {
					continue
				}
			}
			if slices.Contains(places, len(mine)-from+1) {
				return Placeholder, true
			}
		}
	}
	for _, row := range rulesByProgram.find(a) {
		r.rules, r.positionalStarts = append(r.rules, row), append(r.positionalStarts, len(r.positionals))
	}
	return "", false
}

// isSecretWordOf reports whether the argument after word is a secret.
func isSecretWordOf(row *programRule, word string) bool {
	return slices.Contains(row.secretAfterWords, word) || len(row.secretAfterWords) == 1 &&
		row.secretAfterWords[0] == "*" && isSecretName(word)
}

// hasShortFlag reports whether one of the arguments consists of single-letter flags that include one of these letters.
func hasShortFlag(args []string, letters string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		return len(a) > 1 && a[0] == '-' && a[1] != '-' && strings.ContainsAny(a, letters)
	})
}
