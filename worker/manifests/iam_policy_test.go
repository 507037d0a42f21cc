package manifests_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stanch/worker/actions"
	"stanch/worker/manifests"
)

func iamActions(t *testing.T, phase int) []string {
	t.Helper()
	raw, err := manifests.WriteIAMPolicy(actions.Catalog(), phase)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", fmt.Sprintf("iam%d.json", phase))
	if *updateGolden {
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || string(raw) != string(want) {
		t.Errorf("%s differs; look at it with `go test ./worker/manifests -update && git diff`", file)
	}
	var doc struct {
		Statement []struct {
			Effect           string
			Action, Resource []string
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Statement) == 0 {
		t.Errorf("the policy of phase %d permits nothing, not even reading", phase)
	}
	var out []string
	for _, s := range doc.Statement {
		if len(s.Action) == 0 || len(s.Resource) == 0 {
			t.Errorf("phase %d: the statement %+v permits nothing", phase, s)
		}
		if s.Effect != "Allow" {
			t.Errorf("effect %q", s.Effect)
		}
		for _, a := range s.Action {
			if strings.Contains(a, "*") {
				t.Errorf("%s is too broad", a)
			}
			if isWrite(a) && slices.Contains(s.Resource, "*") {
				t.Errorf("%s is allowed on every resource", a)
			}
		}
		out = append(out, s.Action...)
	}
	return out
}

func isWrite(action string) bool {
	for _, verb := range []string{":Put", ":Delete", ":Update", ":Tag", ":Untag", ":Create", ":Attach", ":Add"} {
		if strings.Contains(action, verb) {
			return true
		}
	}
	return false
}

// In phase 1 the policy permits no writes; only phase 3 permits changing who may assume a role.
func TestIAMPolicyMatchesPhase(t *testing.T) {
	for phase, want := range map[int][]string{
		1: nil,
		2: {
			"iam:DeleteRolePolicy", "iam:DeleteUserPolicy", "iam:PutRolePolicy", "iam:PutUserPolicy", "iam:TagUser",
			"iam:UntagUser", "iam:UpdateAccessKey",
		},
		3: {
			"iam:DeleteRolePolicy", "iam:DeleteUserPolicy", "iam:PutRolePolicy", "iam:PutUserPolicy", "iam:TagUser",
			"iam:UntagUser", "iam:UpdateAccessKey", "iam:UpdateAssumeRolePolicy",
		},
	} {
		got := slices.DeleteFunc(iamActions(t, phase), func(a string) bool { return !isWrite(a) })
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("phase %d can write %q, want %q", phase, got, want)
		}
	}
	if _, err := manifests.WriteIAMPolicy(actions.Catalog(), 4); err == nil {
		t.Error("phase 4 was accepted")
	}
}
