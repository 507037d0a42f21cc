package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type fileID struct{ dev, ino uint64 }

type hashed struct {
	sum   string
	upper bool
}

// executables hashes what the processes run, and copies what is in no image. It reads through /proc/<pid>/exe, so that a
// deleted file and one without a name are read too.
func (k *taking) executables(ctx context.Context) {
	for i := range k.snap.Processes {
		p := &k.snap.Processes[i]
		if p.Exe == "" {
			continue
		}
		if ctx.Err() != nil {
			k.missing("executables from process %d on: out of time", p.PID)
			return
		}
		if err := k.executable(ctx, p); err != nil {
			k.missing("executable %s of process %d: %v", p.Exe, p.PID, err)
		}
	}
}

func (k *taking) executable(ctx context.Context, p *Process) error {
	opened, err := within(k, readTime, func() (program, error) { return openProgram(dirOf(p.PID) + "/exe") })
	if err != nil {
		return err
	}
	f, st := opened.file, opened.stat
	id := fileID{st.Dev, st.Ino}
	if h, ok := k.hashes[id]; ok {
		p.SHA256, p.Upper = h.sum, h.upper
		return f.Close()
	}
	upper := !p.Memfd && !p.Deleted && inUpperLayer(p)
	p.Upper = upper
	why := ""
	switch {
	case p.Memfd:
		why = "memfd"
	case p.Deleted:
		why = "deleted"
	case upper:
		why = "upper layer"
	}
	if why == "" && st.Size > k.lim.ImageHashBytes {
		p.HashSkipped = "it is in the image, whose digest names it, and is large"
		return f.Close()
	}
	if st.Size > k.lim.HashBytes {
		_ = f.Close()
		return fmt.Errorf("%d bytes are more than the limit of %d: not hashed", st.Size, k.lim.HashBytes)
	}
	room := min(k.lim.BlobBytes, k.lim.TotalBytes-k.total)
	if why == "" {
		room = 0
	}
	read, err := within(k, hashTime, func() (copied, error) {
		defer f.Close()
		sum, head, err := hashAndCopy(ctx, f, room)
		return copied{sum, head}, err
	})
	if err != nil {
		return err
	}
	sum, head := read.sum, read.head
	p.SHA256 = sum
	k.hashes[id] = hashed{sum, upper}
	if why == "" {
		return nil
	}
	if int64(len(head)) < st.Size {
		k.missing("executable %s of process %d: copied %d of %d bytes: more than the limit", p.Exe, p.PID, len(head), st.Size)
	}
	if len(head) == 0 {
		return nil
	}
	k.total += int64(len(head))
	own := sha256.Sum256(head)
	k.blobs = append(k.blobs, Blob{
		Name: "exe-" + sum[:16], Source: p.Exe, Why: why, SHA256: hex.EncodeToString(own[:]), Size: st.Size, Data: head,
	})
	return nil
}

// hashTime bounds how long one executable is read.
const hashTime = 3 * time.Second

// program is an executable that is open, and copied what was read of one.
type program struct {
	file *os.File
	stat unix.Stat_t
}

type copied struct {
	sum  string
	head []byte
}

func openProgram(path string) (program, error) {
	f, err := os.Open(path)
	if err != nil {
		return program{}, err
	}
	p := program{file: f}
	if err := unix.Fstat(int(f.Fd()), &p.stat); err != nil {
		return program{}, errors.Join(err, f.Close())
	}
	return p, nil
}

// hashAndCopy hashes a file and keeps at most room bytes of it. It stops when ctx ends.
func hashAndCopy(ctx context.Context, r io.Reader, room int64) (string, []byte, error) {
	hash := sha256.New()
	var head bytes.Buffer
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return "", nil, fmt.Errorf("out of time: %w", err)
		}
		n, err := r.Read(buf)
		hash.Write(buf[:n])
		if keep := min(int64(n), room-int64(head.Len())); keep > 0 {
			head.Write(buf[:keep])
		}
		if err == io.EOF {
			return hex.EncodeToString(hash.Sum(nil)), head.Bytes(), nil
		}
		if err != nil {
			return "", nil, err
		}
	}
}

// inUpperLayer tells whether a process's executable lies in the writable layer of its overlay: the mount's options
// name the directory, and a file of that name is in it. The upper directory may be out of sight of the sensor; then the
// answer is no, and events still carry the kernel's own.
func inUpperLayer(p *Process) bool {
	b, _, err := readMax(dirOf(p.PID)+"/mountinfo", 1<<20)
	if err != nil {
		return false
	}
	best, upper := "", ""
	for f := range lines(b) {
		at := sepAt(f)
		if at < 0 || len(f) < at+4 {
			continue
		}
		point := f[4]
		inside := point == "/" || p.Exe == point || strings.HasPrefix(p.Exe, strings.TrimRight(point, "/")+"/")
		if !inside || len(point) < len(best) {
			continue
		}
		best, upper = point, ""
		if f[at+1] != "overlay" {
			continue
		}
		for o := range strings.SplitSeq(f[at+3], ",") {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = dir
			}
		}
	}
	if upper == "" || !strings.HasPrefix(upper, "/") {
		return false
	}
	name := filepath.Join("/", strings.TrimPrefix(p.Exe, strings.TrimRight(best, "/")))
	// In a pod the sensor sees the node's files through the first process.
	for _, root := range []string{"", "/proc/1/root"} {
		if st, err := os.Lstat(root + upper + name); err == nil && st.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// sepAt finds the "-" behind the optional fields of a line of mountinfo.
func sepAt(f []string) int {
	for i := 6; i < len(f); i++ {
		if f[i] == "-" {
			return i
		}
	}
	return -1
}
