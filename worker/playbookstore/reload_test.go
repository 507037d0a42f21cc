package playbookstore_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/playbooks"
	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/playbookstore"
	"stanch/workflows/incident"
)

func matchByName(t *testing.T, l *playbookstore.Store, in playbooks.Incident) map[string]incident.SelectedPlaybook {
	t.Helper()
	all, err := l.MatchPlaybooks(t.Context(), in)
	require.NoError(t, err)
	out := map[string]incident.SelectedPlaybook{}
	for _, s := range all {
		out[s.Name] = s
	}
	return out
}

func writePlaybook(t *testing.T, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
}

const userPlaybook = "playbook: mine\ndescription: x\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 1h\n"

// A playbook is edited while Stanch runs: the next incident uses it without a restart, and an invalid edit changes
// nothing.
func TestEditedPlaybooksApplyImmediately(t *testing.T) {
	dir := t.TempDir()
	c := config.Default()
	c.Playbooks = []string{dir}
	l, problems, err := playbookstore.Open(c, actions.Catalog())
	require.NoError(t, err)
	require.Empty(t, problems)
	mining := playbooks.Incident{Objective: "crypto-mining", Severity: "high", Confidence: 0.9}
	require.Empty(t, matchByName(t, l, mining)["cryptominer"].NotSelectedReason)

	writePlaybook(t, dir, "mine.yaml", userPlaybook)
	got := matchByName(t, l, mining)
	require.Empty(t, got["mine"].NotSelectedReason)
	require.Contains(t, got["cryptominer"].NotSelectedReason, "mine also includes a containment and takes precedence")
	require.True(t, got["cryptominer"].IsFallback)

	writePlaybook(t, dir, "mine.yaml", userPlaybook+"    nonsense: 1\n")
	changed, problems, err := l.Reload()
	require.NoError(t, err)
	require.True(t, changed)
	require.True(t, problems.HasErrors())
	require.Equal(t, userPlaybook, string(matchByName(t, l, mining)["mine"].Source), "its last valid version stays in use")
	require.True(t, l.Problems().HasErrors())

	writePlaybook(t, dir, "mine.yaml", userPlaybook+"  - notify: log\n    with: { text: x }\n")
	require.Contains(t, string(matchByName(t, l, mining)["mine"].Source), "notify: log")
	require.Empty(t, l.Problems())

	require.NoError(t, os.Remove(filepath.Join(dir, "mine.yaml")))
	require.NotContains(t, matchByName(t, l, mining), "mine")
	require.Empty(t, matchByName(t, l, mining)["cryptominer"].NotSelectedReason)

	// A missing directory is an error: the playbooks stay in use.
	writePlaybook(t, dir, "mine.yaml", userPlaybook)
	require.Contains(t, matchByName(t, l, mining), "mine")
	require.NoError(t, os.RemoveAll(dir))
	_, _, err = l.Reload()
	require.ErrorContains(t, err, "list playbooks in "+dir)
	require.Contains(t, matchByName(t, l, mining), "mine")
}

// A deleted playbook does not return with the next invalid edit, and editors' temporary files do not block edits.
func TestDeletedPlaybookStaysDeleted(t *testing.T) {
	dir := t.TempDir()
	c := config.Default()
	c.Playbooks = []string{dir}
	require.NoError(t, os.Symlink("ann@host.1:2", filepath.Join(dir, ".#mine.yaml"))) // an Emacs lock file
	writePlaybook(t, dir, "mine.yaml", userPlaybook)
	l, problems, err := playbookstore.Open(c, actions.Catalog())
	require.NoError(t, err)
	require.Empty(t, problems)
	mining := playbooks.Incident{Objective: "crypto-mining", Severity: "high", Confidence: 0.9}
	require.Contains(t, matchByName(t, l, mining), "mine")

	require.NoError(t, os.Remove(filepath.Join(dir, "mine.yaml")))
	require.NotContains(t, matchByName(t, l, mining), "mine")
	writePlaybook(t, dir, "mine.yaml", userPlaybook+"    nonsense: 1\n")
	require.NotContains(t, matchByName(t, l, mining), "mine", "no valid version exists")

	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600))
	_, _, err = l.Reload()
	require.ErrorContains(t, err, "pipe.yaml: not a regular file")
}

func TestUserFolderNamedLibraryIsNotShipped(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.Mkdir("library", 0o700))
	c := config.Default()
	c.Playbooks = []string{"library"}
	writePlaybook(t, "library", "mine.yaml", userPlaybook)
	l, _, err := playbookstore.Open(c, actions.Catalog())
	require.NoError(t, err)
	sources := map[string]string{}
	for _, row := range playbookstore.List(l.Programs(), nil) {
		sources[row.Playbook] = row.Origin
	}
	require.Equal(t, "user", sources["mine"])
	require.Equal(t, "library", sources["cryptominer"])
}

func TestConfigurationSelectsShippedPlaybooks(t *testing.T) {
	off := false
	for _, c := range []struct {
		name          string
		library       config.LibrarySelection
		has, lacks    []string
		problem, hint string
	}{
		{"all", config.LibrarySelection{}, []string{"cryptominer", "reverse-shell", "isolate-pods"}, nil, "", ""},
		{
			"none",
			config.LibrarySelection{Enabled: &off},
			nil,
			[]string{"cryptominer", "reverse-shell", "isolate-pods"},
			"",
			"",
		},
		{
			"except",
			config.LibrarySelection{Except: []string{"cryptominer"}},
			[]string{"reverse-shell", "isolate-pods"},
			[]string{"cryptominer"},
			"", "",
		},
		{
			"only, with callees",
			config.LibrarySelection{Only: []string{"lateral-movement"}},
			[]string{"lateral-movement", "isolate-pods"},
			[]string{"cryptominer", "reverse-shell"},
			"", "",
		},
		{
			"unknown name",
			config.LibrarySelection{Except: []string{"cryptominr"}},
			[]string{"cryptominer"},
			nil,
			"`library.except` in the configuration: unknown shipped playbook `cryptominr`", "did you mean `cryptominer`?",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := config.Default()
			conf.Library = c.library
			l, problems, err := playbookstore.Open(conf, actions.Catalog())
			require.NoError(t, err)
			names := map[string]bool{}
			for _, p := range l.Programs() {
				names[p.Name] = true
			}
			for _, name := range c.has {
				require.True(t, names[name], name)
			}
			for _, name := range c.lacks {
				require.False(t, names[name], name)
			}
			if c.problem == "" {
				require.Empty(t, problems)
				return
			}
			require.Len(t, problems, 1)
			require.Equal(t, c.problem, problems[0].Message)
			require.Equal(t, c.hint, problems[0].Hint)
		})
	}
}
