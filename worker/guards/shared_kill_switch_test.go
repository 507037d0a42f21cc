package guards

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"stanch/sensors/attestation"
)

// testAuthority signs with the authority's key.
type testAuthority struct{ key attestation.SigningKey }

func (h testAuthority) Keyring() attestation.Keyring {
	return attestation.NewKeyring(h.key.PublicKey())
}

func (h testAuthority) Sign(p attestation.PayloadType, body any) (attestation.Envelope, error) {
	return h.key.Sign(p, body)
}

func newTestAuthority(t *testing.T) testAuthority {
	t.Helper()
	seed := make([]byte, 32)
	if _, err := rand.Read(seed); err != nil {
		t.Fatal(err)
	}
	key, err := attestation.NewSigningKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	return testAuthority{key}
}

// Whoever can write the stored state can pause, but not resume: not without a signature, not with another key's, not
// with an older state, and not by deleting it.
func TestKillSwitchCannotBeClearedWithoutKey(t *testing.T) {
	h, path := newTestAuthority(t), filepath.Join(t.TempDir(), "switch")
	s := &FileKillSwitch{FilePath: path, Authority: h}
	is := func(want bool, when string) {
		t.Helper()
		if stopped, by, err := s.IsPaused(t.Context()); err != nil || stopped != want {
			t.Errorf("%s: stopped is %t by %q (%v), want %t", when, stopped, by, err, want)
		}
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is(false, "at first")
	must(s.Pause(t.Context(), "ann", ""))
	must(s.Resume(t.Context(), "ann"))
	is(false, "lifted by a person")
	lifted, err := os.ReadFile(path)
	must(err)
	must(s.Pause(t.Context(), "ann", ""))
	is(true, "stopped again")
	genuine, err := os.ReadFile(path)
	must(err)
	put("{}")
	is(true, "nothing signed")
	own, _, err := (&signedState{}).signState(newTestAuthority(t), false, "mallory", "", time.Now().Add(time.Hour))
	must(err)
	put(own)
	is(true, "signed with another key")
	put(string(lifted))
	is(true, "an older state")
	must(os.Remove(path))
	is(true, "deleted")
	put(strings.Replace(string(genuine), "\"body\":\"", "\"body\":\"e", 1))
	is(true, "changed")
	must(s.Resume(t.Context(), "ann"))
	is(false, "resumed by a person")
}

// A change on one replica reaches all, and an outage of the cluster neither pauses nor resumes for a while.
func TestSharedKillSwitch(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: "stanch-system",
		Name:      KillSwitchConfigMap,
	}})
	holder := newTestAuthority(t)
	now := time.Now()
	clock := func() time.Time { return now }
	a := &SharedKillSwitch{KubeClient: client, Namespace: "stanch-system", Authority: holder, Now: clock}
	b := &SharedKillSwitch{KubeClient: client, Namespace: "stanch-system", Authority: holder, Now: clock}
	is := func(s *SharedKillSwitch, want bool, when string) {
		t.Helper()
		stopped, by, err := s.IsPaused(context.Background())
		if err != nil || stopped != want || want != (by != "") {
			t.Errorf("%s: stopped is %t by %q (%v), want %t", when, stopped, by, err, want)
		}
	}
	is(a, false, "at first")
	is(b, false, "at first")
	if err := a.Pause(t.Context(), "ann", ""); err != nil {
		t.Fatal(err)
	}
	is(a, true, "where it was stopped, at once")
	now = now.Add(switchCacheTTL)
	is(b, true, "at the other, a moment later")
	if err := b.Resume(t.Context(), "bob"); err != nil {
		t.Fatal(err)
	}
	is(b, false, "resumed")
	now = now.Add(switchCacheTTL)
	is(a, false, "resumed at the other")

	var away error = &url.Error{Op: "Get", URL: "https://10.0.0.1/api", Err: syscall.ECONNREFUSED}
	client.PrependReactor("get", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) {
		return away != nil,
			nil, away
	})
	now = now.Add(time.Minute)
	is(a, false, "the API server is away for a minute")
	now = now.Add(switchStaleMaxAge)
	if stopped, _, err := a.IsPaused(t.Context()); !stopped || err == nil {
		t.Errorf("long outage: stopped is %t (%v), want an error that counts as stopped", stopped, err)
	}
	if stopped, _, err := (&SharedKillSwitch{
		KubeClient: client, Namespace: "stanch-system",
		Authority: holder,
	}).IsPaused(t.Context()); !stopped || err == nil {
		t.Errorf("never read: stopped is %t (%v), want an error that counts as stopped", stopped, err)
	}
	away = nil
	is(a, false, "it is back")
	if err := client.CoreV1().ConfigMaps("stanch-system").Delete(t.Context(), KillSwitchConfigMap,
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(switchCacheTTL)
	if stopped, _, err := a.IsPaused(t.Context()); !stopped || err == nil {
		t.Errorf("deleted: stopped is %t (%v), want an error that counts as stopped", stopped, err)
	}
}
