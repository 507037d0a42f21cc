package redact

import (
	"slices"
	"strings"
	"testing"
)

func TestArgs(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{[]string{"app", "--password=hunter22", "--port=80"}, []string{"app", "--password=" + Placeholder, "--port=80"}},
		{[]string{"app", "--api-key", "hunter22", "run"}, []string{"app", "--api-key", Placeholder, "run"}},
		{[]string{"app", "--token", "--secret", "hunter22"}, []string{"app", "--token", "--secret", Placeholder}},
		{[]string{"env", "DB_PASSWORD=hunter22", "sh"}, []string{"env", "DB_PASSWORD=" + Placeholder, "sh"}},
		{[]string{"/usr/bin/mysql", "-uroot", "-phunter22"}, []string{"/usr/bin/mysql", "-uroot", "-p" + Placeholder}},
		{[]string{"curl", "-u", "bob:hunter22", "https://x"}, []string{"curl", "-u", "bob:" + Placeholder, "https://x"}},
		{[]string{"git", "clone", "https://bob:hunter22@example.org/r"}, []string{"git", "clone", "https://" + Placeholder +
			"@example.org/r"}},
		{
			[]string{"curl", "-H", "Authorization: Bearer abcdefgh12345678"},
			[]string{"curl", "-H", "Authorization: Bearer " + Placeholder},
		},
		{[]string{"sh", "-c", "PGPASSWORD=hunter22 psql -h db"}, []string{"sh", "-c", "PGPASSWORD=" + Placeholder +
			" psql -h db"}},
		{
			[]string{"sh", "-c", "curl --token hunter22 https://x; curl -u bob:hunter22 y"},
			[]string{"sh", "-c", "curl --token " + Placeholder + " https://x; curl -u bob:" + Placeholder + " y"},
		},
		{[]string{"aws", "AKIAABCDEFGHIJKLMNOP"}, []string{"aws", Placeholder}},
		{
			[]string{"xmrig", "-o", "stratum+tcp://pool:3333", "-u", "wallet"},
			[]string{"xmrig", "-o", "stratum+tcp://pool:3333", "-u", "wallet"},
		},
		{[]string{"ls", "-p", "/tmp"}, []string{"ls", "-p", "/tmp"}},
		{nil, nil},
	} {
		in := slices.Clone(c.in)
		if got := Args(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%q\n got %q\nwant %q", c.in, got, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("the argument was changed: %q", c.in)
		}
	}
}

func TestEnvNames(t *testing.T) {
	got := EnvNames([]string{"A=1", "TOKEN=eyJ", "orphan of a value", "=x"})
	if !slices.Equal(got, []string{"A", "TOKEN"}) {
		t.Errorf("%q", got)
	}
}

func FuzzArgs(f *testing.F) {
	for _, s := range []string{
		"app\x00--password=x", "curl\x00-u\x00a:b", "-----BEGIN PRIVATE KEY-----", "", "a\x00",
		"Authorization: BEARER abcdefgh12345678", "ASIAABCDEFGHIJKLMNOP", "eyJhbGciOiJub25lIn0.e30.",
		"ghs_0123456789abcdefghijklmn", "github_pat_0123456789abcdefghijk",
		"glpat-0123456789abcdefgh", "xoxb-0123456789-a", "xapp-0123456789-a", "rk_live_0123456789abcdef",
		"AIza0123456789012345678901234567890", "PA\u017fSWD: x", "to\u212aen=x", "--KEY",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args := strings.Split(s, "\x00")
		got := Args(args)
		if len(got) != len(args) {
			t.Fatalf("%d arguments became %d", len(args), len(got))
		}
		secret := "Zq8" + "correcthorse"
		for _, with := range [][]string{
			append(slices.Clone(args[:1]), "--password="+secret),
			{"app", "--token", secret},
			{"app", "https://u:" + secret + "@h/" + strings.ReplaceAll(s, "@", "")},
		} {
			if joined := strings.Join(Args(with), " "); strings.Contains(joined, secret) && !strings.Contains(s, secret) {
				t.Fatalf("%q is in %q", secret, joined)
			}
		}
		EnvNames(args)
		// The hints must not change the result.
		slow := s
		for _, one := range secretPatterns {
			slow = one.pattern.ReplaceAllString(slow, one.replacement)
		}
		if fast := Text(s); fast != slow {
			t.Fatalf("%q instead of %q", fast, slow)
		}
		if isSecretName(s) != secretNamePattern.MatchString(s) {
			t.Fatalf("the hints miss %q", s)
		}
	})
}

func BenchmarkArgs(b *testing.B) {
	args := []string{"/usr/sbin/nginx", "-g", "daemon off;", "-c", "/etc/nginx/nginx.conf"}
	b.ReportAllocs()
	for b.Loop() {
		Args(args)
	}
}
