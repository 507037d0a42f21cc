package powerloss

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// inode is a file or a directory of the model.
type inode struct {
	// versions are the contents that a file may have after a crash: the durable one first, the current one last.
	versions [][]byte

	entries map[string]*inode // of a directory, as processes see it; nil for a file
	durable map[string]*inode // its entries on the disk
	pending []directoryChange // its changes since the last sync, oldest first
}

// directoryChange adds the entry name, removes the entry removed, or both at once. Either may be "".
type directoryChange struct {
	name    string
	node    *inode
	removed string
}

func newDirectory() *inode {
	return &inode{entries: map[string]*inode{}, durable: map[string]*inode{}}
}

func (n *inode) isDirectory() bool { return n.entries != nil }

func (n *inode) content() []byte { return n.versions[len(n.versions)-1] }

func (n *inode) change(c directoryChange) {
	c.applyTo(n.entries)
	n.pending = append(n.pending, c)
}

func (c directoryChange) applyTo(entries map[string]*inode) {
	if c.removed != "" {
		delete(entries, c.removed)
	}
	if c.name != "" {
		entries[c.name] = c.node
	}
}

// descriptor is an open file.
type descriptor struct {
	node   *inode
	offset int
	append bool
}

// disk is the model of the file system below one directory.
type disk struct {
	root         string
	top          *inode
	open_        map[int]*descriptor
	acknowledged bool
}

func newDisk(root string) *disk {
	return &disk{root: root, top: newDirectory(), open_: map[int]*descriptor{}}
}

// errOutside means that a path is not below the root.
var errOutside = errors.New("outside of the directory")

// lookupParent returns the directory of a path and the name in it.
func (d *disk) lookupParent(path string) (*inode, string, error) {
	rel, err := filepath.Rel(d.root, path)
	if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil, "", errOutside
	}
	at := d.top
	parts := strings.Split(rel, "/")
	for _, part := range parts[:len(parts)-1] {
		if at = at.entries[part]; at == nil || !at.isDirectory() {
			return nil, "", fmt.Errorf("the model has no directory for %s", path)
		}
	}
	return at, parts[len(parts)-1], nil
}

// path returns the absolute path of the arguments at i (a descriptor) and i+1 of a call.
func (d *disk) path(c call, i int) (string, error) {
	if len(c.args) < i+2 {
		return "", errors.New("unknown arguments")
	}
	path := c.args[i+1]
	switch {
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	case c.args[i] == "AT_FDCWD":
		return "", errOutside // the tests use absolute paths
	}
	fd, err := strconv.Atoi(c.args[i])
	if err != nil {
		return "", fmt.Errorf("unknown descriptor %q", c.args[i])
	}
	if d.open_[fd] != nil {
		return "", errors.New("paths relative to a descriptor are not modeled")
	}
	return "", errOutside
}

// apply replays a call. A call that concerns nothing below the root changes nothing.
func (d *disk) apply(c call) error {
	if c.failed {
		return nil
	}
	if handle := handlers[c.name]; handle != nil {
		if err := handle(d, c); err != nil && !errors.Is(err, errOutside) {
			return err
		}
		return nil
	}
	for _, a := range c.args {
		fd, err := strconv.Atoi(a)
		if strings.HasPrefix(a, d.root+"/") || err == nil && d.open_[fd] != nil {
			return errors.New("the system call is not modeled")
		}
	}
	return nil
}

func (d *disk) open(c call) error {
	path, err := d.path(c, 0)
	if err != nil {
		return err
	}
	if path == d.root {
		d.open_[c.result] = &descriptor{node: d.top}
		return nil
	}
	parent, name, err := d.lookupParent(path)
	if err != nil {
		return err
	}
	flags := strings.Split(c.args[2], "|")
	n := parent.entries[name]
	switch {
	case n == nil && slices.Contains(flags, "O_CREAT"):
		n = &inode{versions: [][]byte{nil}}
		parent.change(directoryChange{name: name, node: n})
	case n == nil:
		return fmt.Errorf("the model has no %s", path)
	case slices.Contains(flags, "O_TRUNC") && len(n.content()) > 0:
		n.versions = append(n.versions, nil)
	}
	d.open_[c.result] = &descriptor{node: n, append: slices.Contains(flags, "O_APPEND")}
	return nil
}

// descriptor returns the open file of the first argument and the number in the argument at i, 0 if i is 0.
func (d *disk) descriptor(c call, i int) (*descriptor, int, error) {
	fd, err := strconv.Atoi(c.args[0])
	if err != nil || d.open_[fd] == nil {
		return nil, 0, errOutside
	}
	if i == 0 {
		return d.open_[fd], 0, nil
	}
	n, err := strconv.Atoi(c.args[i])
	if err != nil {
		return nil, 0, fmt.Errorf("unknown number %q", c.args[i])
	}
	return d.open_[fd], n, nil
}

func (d *disk) close(c call) error {
	fd, err := strconv.Atoi(c.args[0])
	if err != nil {
		return fmt.Errorf("unknown descriptor %q", c.args[0])
	}
	delete(d.open_, fd)
	return nil
}

func (d *disk) seek(c call) error {
	f, _, err := d.descriptor(c, 0)
	if err != nil {
		return err
	}
	f.offset = c.result
	return nil
}

func (d *disk) write(c call) error {
	f, _, err := d.descriptor(c, 0)
	if err != nil {
		return err
	}
	if f.append {
		f.offset = len(f.node.content())
	}
	f.node.overwrite(f.offset, c.args[1][:c.result])
	f.offset += c.result
	return nil
}

func (d *disk) writeAt(c call) error {
	f, offset, err := d.descriptor(c, 3)
	if err != nil {
		return err
	}
	f.node.overwrite(offset, c.args[1][:c.result])
	return nil
}

// overwrite adds two versions: one with half of the data, because a crash can leave a part, and the complete one.
func (n *inode) overwrite(offset int, data string) {
	before := n.content()
	for _, part := range []string{data[:len(data)/2], data} {
		next := make([]byte, max(len(before), offset+len(part)))
		copy(next, before)
		copy(next[offset:], part)
		n.versions = append(n.versions, next)
	}
}

func (d *disk) truncate(c call) error {
	f, size, err := d.descriptor(c, 1)
	if err != nil {
		return err
	}
	next := make([]byte, size)
	copy(next, f.node.content())
	f.node.versions = append(f.node.versions, next)
	return nil
}

func (d *disk) sync(c call) error {
	f, _, err := d.descriptor(c, 0)
	if err != nil {
		return err
	}
	if f.node.isDirectory() {
		f.node.durable, f.node.pending = maps.Clone(f.node.entries), nil
	} else {
		f.node.versions = [][]byte{f.node.content()}
	}
	return nil
}

func (d *disk) rename(c call) error {
	from, err := d.path(c, 0)
	if err != nil {
		return err
	}
	to, err := d.path(c, 2)
	if err != nil {
		return err
	}
	source, old, err := d.lookupParent(from)
	if err != nil {
		return err
	}
	target, name, err := d.lookupParent(to)
	if err != nil {
		return err
	}
	n := source.entries[old]
	if n == nil {
		return fmt.Errorf("the model has no %s", from)
	}
	if source == target {
		source.change(directoryChange{name: name, node: n, removed: old})
		return nil
	}
	target.change(directoryChange{name: name, node: n})
	source.change(directoryChange{removed: old})
	return nil
}

func (d *disk) link(c call) error {
	from, err := d.path(c, 0)
	if err != nil {
		return err
	}
	to, err := d.path(c, 2)
	if err != nil {
		return err
	}
	source, old, err := d.lookupParent(from)
	if err != nil {
		return err
	}
	target, name, err := d.lookupParent(to)
	if err != nil {
		return err
	}
	if source.entries[old] == nil {
		return fmt.Errorf("the model has no %s", from)
	}
	target.change(directoryChange{name: name, node: source.entries[old]})
	return nil
}

func (d *disk) unlink(c call) error {
	path, err := d.path(c, 0)
	if err != nil {
		return err
	}
	parent, name, err := d.lookupParent(path)
	if err != nil {
		return err
	}
	parent.change(directoryChange{removed: name})
	return nil
}

func (d *disk) makeDirectory(c call) error {
	path, err := d.path(c, 0)
	if err != nil {
		return err
	}
	parent, name, err := d.lookupParent(path)
	if err != nil {
		return err
	}
	parent.change(directoryChange{name: name, node: newDirectory()})
	return nil
}
