// Package editor drives a real YAML language server, the one inside of most editors, with the schema of playbooks: what
// a user sees while writing. It refuses to judge playbooks by itself.
package editor

import (
	"context"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/jsonrpc2"
	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/playbooks/library"
	needs "stanch/testenv/prereq"
	"stanch/worker/actions"
)

// jsonObject is a message's content.
type jsonObject = map[string]any

// languageServer is a language server with one open document.
type languageServer struct {
	conn   *jsonrpc2.Conn
	schema string
	file   string

	mu          sync.Mutex
	diagnostics map[string][]diagnostic
}

type diagnostic struct {
	Message string
	Range   struct{ Start struct{ Line, Character int } }
}

type stdio struct {
	io.Reader
	io.WriteCloser
}

func startServer(t *testing.T) *languageServer {
	t.Helper()
	program := os.Getenv("STANCH_YAML_LANGUAGE_SERVER")
	if program == "" {
		cache := os.Getenv("STANCH_CACHE")
		if home, err := os.UserHomeDir(); err == nil && cache == "" {
			cache = filepath.Join(home, ".cache", "stanch")
		}
		program = filepath.Join(cache, "yaml-language-server", "node_modules", ".bin", "yaml-language-server")
	}
	if _, err := os.Stat(program); err != nil {
		needs.SkipOrFail(t, "the YAML language server is not installed (`make setup` does, with npm)")
	}
	dir := t.TempDir()
	raw, err := json.Marshal(playbooks.PlaybookSchema(actions.Catalog()))
	require.NoError(t, err)
	s := &languageServer{schema: filepath.Join(dir, "playbook.schema.json"), file: "file://" + filepath.Join(dir,
		"playbook.yaml"), diagnostics: map[string][]diagnostic{}}
	require.NoError(t, os.WriteFile(s.schema, raw, 0o600))

	cmd := exec.CommandContext(t.Context(), program, "--stdio")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	s.conn = jsonrpc2.NewConn(context.Background(), jsonrpc2.NewBufferedStream(stdio{out, in},
		jsonrpc2.VSCodeObjectCodec{}), jsonrpc2.HandlerWithError(s.handleRequest))
	root := (&url.URL{Scheme: "file", Path: dir}).String()
	s.callMethod(t, "initialize", jsonObject{
		"processId": os.Getpid(), "rootUri": root, "workspaceFolders": []any{jsonObject{"uri": root, "name": "test"}},
		"capabilities": jsonObject{
			"workspace": jsonObject{
				"configuration": true, "workspaceFolders": true,
				"didChangeConfiguration": jsonObject{"dynamicRegistration": true},
			},
			"textDocument": jsonObject{
				"completion":         jsonObject{"completionItem": jsonObject{"documentationFormat": []string{"markdown"}}},
				"hover":              jsonObject{"contentFormat": []string{"markdown"}},
				"publishDiagnostics": jsonObject{},
			},
		},
	}, nil)
	s.sendNotification(t, "initialized", jsonObject{})
	s.sendNotification(t, "workspace/didChangeConfiguration", jsonObject{"settings": s.clientSettings()})
	return s
}

func (s *languageServer) clientSettings() jsonObject {
	return jsonObject{"yaml": jsonObject{
		"schemas": jsonObject{"file://" + s.schema: "*.yaml"}, "validate": true,
		"hover": true, "completion": true, "schemaStore": jsonObject{"enable": false},
	}}
}

// handleRequest answers what the server asks, and keeps what it finds.
func (s *languageServer) handleRequest(_ context.Context, _ *jsonrpc2.Conn, r *jsonrpc2.Request) (any, error) {
	switch r.Method {
	case "workspace/configuration":
		var q struct{ Items []struct{ Section string } }
		if err := json.Unmarshal(*r.Params, &q); err != nil {
			return nil, err //nolint:wrapcheck // the library sends it back
		}
		var out []any
		for _, item := range q.Items {
			out = append(out, s.clientSettings()[item.Section])
		}
		return out, nil
	case "textDocument/publishDiagnostics":
		var p struct {
			URI         string
			Diagnostics []diagnostic
		}
		if err := json.Unmarshal(*r.Params, &p); err != nil {
			return nil, err //nolint:wrapcheck // the library sends it back
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.diagnostics[p.URI] = p.Diagnostics
	}
	return nil, nil
}

func (s *languageServer) callMethod(t *testing.T, method string, in, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, s.conn.Call(ctx, method, in, out), method)
}

func (s *languageServer) sendNotification(t *testing.T, method string, in any) {
	t.Helper()
	require.NoError(t, s.conn.Notify(t.Context(), method, in), method)
}

// openDocument opens a document and gives what is wrong with it.
func (s *languageServer) openDocument(t *testing.T, name, text string) (uri string, found []diagnostic) {
	t.Helper()
	uri = strings.TrimSuffix(s.file, "playbook.yaml") + name
	s.sendNotification(t, "textDocument/didOpen", jsonObject{"textDocument": jsonObject{
		"uri": uri, "languageId": "yaml",
		"version": 1, "text": text,
	}})
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, judged := s.diagnostics[uri]
		found = s.diagnostics[uri]
		return judged
	}, 30*time.Second, 10*time.Millisecond, "the server judges %s", name)
	return uri, found
}

// splitAtCursor finds the place of the mark ‸ in a text, and the text without it.
func splitAtCursor(text string) (clean string, position jsonObject) {
	before, after, _ := strings.Cut(text, "‸")
	line := strings.Count(before, "\n")
	return before + after, jsonObject{"line": line, "character": len(before) - strings.LastIndex(before, "\n") - 1}
}

// completionsAt are what the editor proposes at the mark.
func (s *languageServer) completionsAt(t *testing.T, name, text string) map[string]string {
	t.Helper()
	clean, position := splitAtCursor(text)
	uri, _ := s.openDocument(t, name, clean)
	var list struct {
		Items []struct {
			Label         string
			Documentation json.RawMessage
		}
	}
	s.callMethod(t, "textDocument/completion", jsonObject{"textDocument": jsonObject{"uri": uri}, "position": position},
		&list)
	out := map[string]string{}
	for _, item := range list.Items {
		out[item.Label] = string(item.Documentation)
	}
	return out
}

// hoverTextAt is what the editor shows of the word at the mark.
func (s *languageServer) hoverTextAt(t *testing.T, name, text string) string {
	t.Helper()
	clean, position := splitAtCursor(text)
	uri, _ := s.openDocument(t, name, clean)
	var shown struct{ Contents struct{ Value string } }
	s.callMethod(t, "textDocument/hover", jsonObject{"textDocument": jsonObject{"uri": uri}, "position": position}, &shown)
	return shown.Contents.Value
}

const playbookHeader = "playbook: p\ndescription: d\nmatch: { objective: crypto-mining }\nsteps:\n"

func TestLanguageServerCompletesAndValidatesPlaybooks(t *testing.T) {
	s := startServer(t)
	t.Run("valid playbooks have no mistakes", func(t *testing.T) {
		for _, source := range library.PlaybookSources() {
			text := strings.Replace(string(source.Content), "https://stanch.dev/schema/playbook.json", "file://"+s.schema, 1)
			_, found := s.openDocument(t, filepath.Base(source.File), text)
			require.Empty(t, found, source.File)
		}
	})
	t.Run("mistakes are marked where they are", func(t *testing.T) {
		for name, text := range map[string]string{
			"a key that is none":            playbookHeader + "  - evidence: process.snapshot\n    timout: 5s‸\n",
			"an action that is none":        playbookHeader + "  - evidence: process.snapshott‸\n",
			"a lease without an end":        playbookHeader + "  - contain: pod.isolate‸\n",
			"an act with one":               playbookHeader + "  - contain: pod.restart‸\n    for: 5m\n",
			"a parameter that is none":      playbookHeader + "  - evidence: pod.logs\n    with: { tial: 5 }‸\n",
			"a parameter out of its bounds": playbookHeader + "  - evidence: pod.logs\n    with: { tail: 0 }‸\n",
			"a key of another kind":         playbookHeader + "  - wait: 5m\n    with: { tail: 0 }‸\n",
			"an approval without people": playbookHeader +
				"  - approval: sure‸\n    timeout: 5m\n    on_timeout: deny\n    steps: [{ notify: log }]\n",
			"an unknown objective": "playbook: p\nmatch: { objective: crypto-minig }‸\nsteps: [{ notify: log }]\n",
			"an unknown outcome":   playbookHeader + "  - stop: suceeded‸\n",
		} {
			clean, position := splitAtCursor(text)
			_, found := s.openDocument(t, name+".yaml", clean)
			require.NotEmpty(t, found, name)
			// Some are of the step, some of the line.
			require.GreaterOrEqual(t, position["line"].(int), found[0].Range.Start.Line, "%s: %v", name, found)
		}
	})
	t.Run("it offers actions, parameters and keys, with what they are for", func(t *testing.T) {
		contain := s.completionsAt(t, "contain.yaml", playbookHeader+"  - contain: ‸\n")
		require.Contains(t, contain, "pod.isolate")
		require.Contains(t, contain, "workload.scale")
		require.NotContains(t, contain, "pod.logs", "an action of another verb")
		with := s.completionsAt(t, "with.yaml", playbookHeader+"  - evidence: pod.logs\n    with:\n      ‸\n")
		require.Contains(t, with, "tail")
		require.Contains(t, with["tail"], "lines from the end")
		require.NotContains(t, with, "replicas", "a parameter of another action")
		keys := s.completionsAt(t, "keys.yaml", playbookHeader+"  - evidence: pod.logs\n    ‸\n")
		require.Contains(t, keys, "target")
		require.Contains(t, keys["on_failure"], "refused")
		kinds := s.completionsAt(t, "kinds.yaml", playbookHeader+"  - ‸\n")
		for _, kind := range playbooks.StepKinds() {
			require.Contains(t, kinds, kind.Name)
		}
		objectives := s.completionsAt(t, "objectives.yaml", "playbook: p\nmatch:\n  objective: ‸\n")
		require.Contains(t, objectives, "crypto-mining")
	})
	t.Run("it says what a word means", func(t *testing.T) {
		require.Contains(t, s.hoverTextAt(t, "h1.yaml", playbookHeader+"  - contain: pod.iso‸late\n    for: 1h\n"),
			"Isolate one pod, but none of its siblings")
		require.Contains(t, s.hoverTextAt(t, "h2.yaml", playbookHeader+"  - evidence: pod.logs\n    with: { ta‸il: 5 }\n"),
			"lines from the end")
		require.Contains(t, s.hoverTextAt(t, "h3.yaml",
			playbookHeader+"  - forea‸ch: incident.targets\n    steps: [{ notify: log }]\n"), "for each element of a list")
		require.Contains(t, s.hoverTextAt(t, "h4.yaml", "playbook: p\nmax_ph‸ase: 2\n"),
			"the maximum phase of this playbook")
	})
}
