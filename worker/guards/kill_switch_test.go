package guards

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"stanch/sensors/attestation"
)

// brokenAuthority cannot sign.
type brokenAuthority struct{ testAuthority }

func (brokenAuthority) Sign(attestation.PayloadType, any) (attestation.Envelope, error) {
	return attestation.Envelope{}, errors.New("the key is missing")
}

func TestPausedStateNamesPersonTimeAndReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "switch")
	s := &FileKillSwitch{FilePath: path, Authority: newTestAuthority(t)}
	require.NoError(t, s.Pause(t.Context(), "ann", "a migration"))
	state, err := s.State(t.Context())
	require.NoError(t, err)
	require.True(t, state.Paused)
	require.Equal(t, "a migration", state.Reason)
	_, by, err := s.IsPaused(t.Context())
	require.NoError(t, err)
	require.Equal(t, "by ann at "+state.ChangedAt.Format(time.RFC3339)+": a migration", by)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, s.Pause(t.Context(), "", ""))
	state, err = s.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, "by someone at "+state.ChangedAt.Format(time.RFC3339), describePausedBy(state))
	require.NoError(t, s.Resume(t.Context(), "ann"))
	state, err = s.State(t.Context())
	require.NoError(t, err)
	require.False(t, state.Paused)
	require.Equal(t, "ann", state.ChangedBy)
	_, by, err = s.IsPaused(t.Context())
	require.NoError(t, err)
	require.Empty(t, by)
}

func TestUnreadableKillSwitchFileIsAnErrorAndPauses(t *testing.T) {
	s := &FileKillSwitch{FilePath: t.TempDir(), Authority: newTestAuthority(t)} // a directory
	stopped, _, err := s.IsPaused(t.Context())
	require.ErrorContains(t, err, "read the kill switch")
	require.True(t, stopped)
	state, err := s.State(t.Context())
	require.ErrorContains(t, err, "read the kill switch")
	require.True(t, state.Paused)
	require.ErrorContains(t, s.Pause(t.Context(), "ann", ""), "set the kill switch")
	require.ErrorContains(t, s.Resume(t.Context(), "ann"), "clear the kill switch")
}

func TestUnsignedChangeOfKillSwitchIsAnError(t *testing.T) {
	s := &FileKillSwitch{FilePath: filepath.Join(t.TempDir(), "switch"), Authority: brokenAuthority{newTestAuthority(t)}}
	require.ErrorContains(t, s.Pause(t.Context(), "ann", ""), "sign the state of the kill switch: the key is missing")
	require.NoFileExists(t, s.FilePath)
}

func TestInvalidStateSaysWhyItPauses(t *testing.T) {
	authority := newTestAuthority(t)
	at := time.UnixMilli(1_000_000)
	read := func(s *signedState, text string) string {
		state := s.readState(text, authority.Keyring())
		require.True(t, state.Paused, text)
		return describePausedBy(state)
	}
	s := &signedState{}
	older, first, err := s.signState(authority, false, "ann", "", at)
	require.NoError(t, err)
	require.EqualValues(t, 1_000_000, first)
	_, notStored, err := s.signState(authority, false, "ann", "", at)
	require.NoError(t, err)
	require.Equal(t, first, notStored, "what was not stored does not count")
	text, none, err := s.signState(brokenAuthority{authority}, false, "ann", "", at)
	require.ErrorContains(t, err, "sign the state of the kill switch: the key is missing")
	require.Empty(t, text)
	require.Zero(t, none)
	s.rememberStored(first)
	newer, second, err := s.signState(authority, true, "ann", "", at)
	require.NoError(t, err)
	require.EqualValues(t, 1_000_001, second, "two changes in one millisecond have an order")
	s.rememberStored(second)
	s.rememberStored(first)
	require.Equal(t, "the kill switch's state is older than a previous one", read(s, older))

	restarted := &signedState{}
	require.Contains(t, read(restarted, newer), "by ann at")
	require.Equal(t, "the kill switch's state is older than a previous one", read(restarted, older))
	require.Equal(t, "the kill switch's state was deleted", read(restarted, ""))
	require.Equal(t, "the kill switch's state is not valid JSON", read(restarted, "no JSON"))
	require.Equal(t, "the kill switch's state is not signed by the authority", read(restarted, "{}"))
	require.Contains(t, read(restarted, newer), "by ann at", "the same state again")
	forged, _, err := (&signedState{}).signState(newTestAuthority(t), false, "eve", "", at.Add(time.Hour))
	require.NoError(t, err)
	require.Contains(t, read(restarted, forged), "not signed by the authority")
}

// sharedSwitch is a shared kill switch of an API server whose answers a test decides.
type sharedSwitch struct {
	*SharedKillSwitch
	client *fake.Clientset
	clock  time.Time
	reads  int
	fail   map[string]error // by verb
}

func newSharedSwitch(t *testing.T) *sharedSwitch {
	t.Helper()
	s := &sharedSwitch{clock: time.Now(), fail: map[string]error{}, client: fake.NewClientset(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "stanch-system", Name: KillSwitchConfigMap},
	})}
	s.client.PrependReactor("*", "configmaps", func(a ktesting.Action) (bool, runtime.Object, error) {
		if a.GetVerb() == "get" {
			s.reads++
		}
		return s.fail[a.GetVerb()] != nil, nil, s.fail[a.GetVerb()]
	})
	s.SharedKillSwitch = &SharedKillSwitch{
		KubeClient: s.client, Namespace: "stanch-system", Authority: newTestAuthority(t),
		Now: func() time.Time { return s.clock },
	}
	return s
}

func TestSharedKillSwitchIsCachedForASecond(t *testing.T) {
	s := newSharedSwitch(t)
	paused := func() bool {
		is, _, err := s.IsPaused(t.Context())
		require.NoError(t, err)
		return is
	}
	require.False(t, paused())
	reads := s.reads
	s.clock = s.clock.Add(switchCacheTTL - 1)
	require.False(t, paused())
	require.Equal(t, reads, s.reads)
	s.clock = s.clock.Add(1)
	require.False(t, paused())
	require.Equal(t, reads+1, s.reads)
}

func TestOutageIsBridgedForFiveMinutes(t *testing.T) {
	s := newSharedSwitch(t)
	_, _, err := s.IsPaused(t.Context())
	require.NoError(t, err)
	s.fail["get"] = apierrors.NewTooManyRequests("busy", 1)
	s.clock = s.clock.Add(5*time.Minute - 1)
	stopped, _, err := s.IsPaused(t.Context())
	require.NoError(t, err)
	require.False(t, stopped)
	s.clock = s.clock.Add(1)
	stopped, _, err = s.IsPaused(t.Context())
	require.ErrorContains(t, err, "read the kill switch stanch-system/stanch-kill-switch")
	require.True(t, stopped)
	state, err := s.State(t.Context())
	require.Error(t, err)
	require.True(t, state.Paused)
}

func TestSharedStateNamesPersonAndReason(t *testing.T) {
	s := newSharedSwitch(t)
	require.NoError(t, s.Pause(t.Context(), "ann", "a migration"))
	state, err := s.State(t.Context())
	require.NoError(t, err)
	require.True(t, state.Paused)
	require.Equal(t, "ann", state.ChangedBy)
	require.Equal(t, "a migration", state.Reason)
	require.NoError(t, s.Resume(t.Context(), "ben"))
	state, err = s.State(t.Context())
	require.NoError(t, err)
	require.False(t, state.Paused)
	require.Equal(t, "ben", state.ChangedBy)
}

// In an emergency, kubectl alone pauses; resuming needs a person of Stanch.
func TestKeyByInConfigMapPauses(t *testing.T) {
	s := newSharedSwitch(t)
	_, err := s.client.CoreV1().ConfigMaps("stanch-system").Patch(t.Context(), KillSwitchConfigMap, types.MergePatchType,
		[]byte(`{"data":{"by":"root"}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	stopped, by, err := s.IsPaused(t.Context())
	require.NoError(t, err)
	require.True(t, stopped)
	require.Equal(t, "by root in the ConfigMap", by)
	require.NoError(t, s.Resume(t.Context(), "ann"))
	stopped, _, err = s.IsPaused(t.Context())
	require.NoError(t, err)
	require.False(t, stopped)
}

func TestFailedChangeOfSharedKillSwitchIsAnError(t *testing.T) {
	for verb, cause := range map[string]string{"get": "unreachable", "patch": "forbidden"} {
		s := newSharedSwitch(t)
		s.fail[verb] = errors.New(cause)
		name := "stanch-system/stanch-kill-switch: "
		require.ErrorContains(t, s.Pause(t.Context(), "ann", ""), "set the kill switch "+name+cause)
		require.ErrorContains(t, s.Resume(t.Context(), "ann"), "clear the kill switch "+name+cause)
		s.fail = nil
		stopped, by, err := s.IsPaused(t.Context())
		require.NoError(t, err)
		require.False(t, stopped, "%s: what counts is the stored state, also after a failed change: %s", verb, by)
	}
	s := newSharedSwitch(t)
	s.Authority = brokenAuthority{newTestAuthority(t)}
	require.ErrorContains(t, s.Pause(t.Context(), "ann", ""), "the key is missing")
	for _, a := range s.client.Actions() {
		require.NotEqual(t, "patch", a.GetVerb())
	}
}

// If the new state cannot be read back, the state before the change is not used any more.
func TestChangeThatCannotBeReadBackIsReadAgain(t *testing.T) {
	s := newSharedSwitch(t)
	reads := 0
	s.client.PrependReactor("get", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) {
		reads++
		return reads == 2, nil, errors.New("unreachable")
	})
	require.ErrorContains(t, s.Pause(t.Context(), "ann", ""), "unreachable")
	stopped, _, err := s.IsPaused(t.Context())
	require.NoError(t, err)
	require.True(t, stopped)
}

// Even if nothing was read since a pause, whoever can write the stored state cannot put the state before it back.
func TestStateBeforeChangeIsRefusedAtOnce(t *testing.T) {
	file := &FileKillSwitch{FilePath: filepath.Join(t.TempDir(), "stopped"), Authority: newTestAuthority(t)}
	require.NoError(t, file.Resume(t.Context(), "ann"))
	before, err := os.ReadFile(file.FilePath)
	require.NoError(t, err)
	require.NoError(t, file.Pause(t.Context(), "ann", ""))
	require.NoError(t, os.WriteFile(file.FilePath, before, 0o600))
	paused, by, err := file.IsPaused(t.Context())
	require.NoError(t, err)
	require.True(t, paused)
	require.Contains(t, by, "older than a previous one")

	shared := newSharedSwitch(t)
	require.NoError(t, shared.Resume(t.Context(), "ann"))
	maps := shared.client.CoreV1().ConfigMaps(shared.Namespace)
	resumed, err := maps.Get(t.Context(), KillSwitchConfigMap, metav1.GetOptions{})
	require.NoError(t, err)
	patched := false
	shared.client.PrependReactor("patch", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) {
		patched = true
		return false, nil, nil
	})
	shared.client.PrependReactor("get", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) {
		return patched, resumed, nil
	})
	require.NoError(t, shared.Pause(t.Context(), "ann", ""))
	paused, by, err = shared.IsPaused(t.Context())
	require.NoError(t, err)
	require.True(t, paused)
	require.Contains(t, by, "older than a previous one")
}
