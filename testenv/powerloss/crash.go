package powerloss

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// crashState is what a disk can have after a crash.
type crashState struct {
	after        string // the last system call
	acknowledged bool
	tree         tree
}

// maxCrashStates bounds the states after one system call.
const maxCrashStates = 20_000

// crashStates returns what the disk can have if the power fails now: each unsynced change of a directory and each
// version of a file's content may or may not be on the disk, independently.
func (d *disk) crashStates(after string) ([]crashState, error) {
	trees, err := d.top.crashTrees("")
	if err != nil {
		return nil, err
	}
	var out []crashState
	for _, tr := range trees {
		out = append(out, crashState{after: after, acknowledged: d.acknowledged, tree: tr})
	}
	return out, nil
}

// crashTrees returns the possible trees below a directory.
func (n *inode) crashTrees(path string) ([]tree, error) {
	var out []tree
	for mask := range 1 << len(n.pending) {
		entries := maps.Clone(n.durable)
		for i, c := range n.pending {
			if mask&(1<<i) != 0 {
				c.applyTo(entries)
			}
		}
		trees := []tree{{}}
		for _, name := range slices.Sorted(maps.Keys(entries)) {
			choices, err := entries[name].crashChoices(path + name)
			if err != nil {
				return nil, err
			}
			var next []tree
			for _, tr := range trees {
				for _, choice := range choices {
					both := maps.Clone(tr)
					maps.Copy(both, choice)
					next = append(next, both)
				}
			}
			if trees = next; len(out)+len(trees) > maxCrashStates {
				return nil, fmt.Errorf("%s has more than %d possible states", path, maxCrashStates)
			}
		}
		out = append(out, trees...)
	}
	return out, nil
}

// crashChoices returns what can be at a path: the versions of a file, or the trees of a directory.
func (n *inode) crashChoices(path string) ([]tree, error) {
	if !n.isDirectory() {
		var out []tree
		for _, v := range n.versions {
			out = append(out, tree{path: v})
		}
		return out, nil
	}
	below, err := n.crashTrees(path + "/")
	for _, tr := range below {
		tr[path+"/"] = nil
	}
	return below, err
}

// live returns the files as processes see them.
func (d *disk) live() tree {
	out := tree{}
	d.top.addLive(out, "")
	return out
}

func (n *inode) addLive(out tree, path string) {
	for name, e := range n.entries {
		if e.isDirectory() {
			out[path+name+"/"] = nil
			e.addLive(out, path+name+"/")
		} else {
			out[path+name] = e.content()
		}
	}
}

// key identifies the tree. Temporary files have random names, which differ between no two trees of one recording.
func (tr tree) key() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(tr)) {
		fmt.Fprintf(&b, "%q %q\n", path, tr[path])
	}
	return b.String()
}

// String lists the files with the beginning of their content.
func (tr tree) String() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(tr)) {
		fmt.Fprintf(&b, "  %s (%d bytes) %.60q\n", path, len(tr[path]), tr[path])
	}
	return b.String()
}
