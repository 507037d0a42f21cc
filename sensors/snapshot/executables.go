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

type executableHash struct {
	sha256Hex  string
	upperLayer bool
}

// collectExecutables hashes the executables of the processes, and copies those that are not part of the image. It
// reads through /proc/<pid>/exe, so it also reads deleted files and files that never had a name.
func (k *collector) collectExecutables(ctx context.Context) {
	for i := range k.snapshot.Processes {
		p := &k.snapshot.Processes[i]
		if p.Exe == "" {
			continue
		}
		if ctx.Err() != nil {
			k.addMissing("executables of process %d and all later processes: timed out", p.PID)
			return
		}
		if err := k.collectExecutable(ctx, p); err != nil {
			k.addMissing("executable %s of process %d: %v", p.Exe, p.PID, err)
		}
	}
}

func (k *collector) collectExecutable(ctx context.Context, p *Process) error {
	opened, err := readWithTimeout(k, readTimeout,
		func() (openExecutable, error) { return openExecutableFile(procDir(p.PID) + "/exe") })
	if err != nil {
		return err
	}
	f, st := opened.file, opened.stat
	id := fileID{st.Dev, st.Ino}
	if h, ok := k.hashCache[id]; ok {
		p.ExeSHA256, p.ExeInUpperLayer = h.sha256Hex, h.upperLayer
		return f.Close()
	}
	upper := !p.ExeIsMemfd && !p.ExeDeleted && isInUpperLayer(p)
	p.ExeInUpperLayer = upper
	why := copyReason(p)
	if why == "" && st.Size > k.limits.MaxImageHashBytes {
		p.HashSkipped = "the file is large, and the image digest covers it"
		return f.Close()
	}
	if st.Size > k.limits.MaxHashBytes {
		_ = f.Close()
		return fmt.Errorf("%d bytes exceed the limit of %d: not hashed", st.Size, k.limits.MaxHashBytes)
	}
	room := min(k.limits.MaxExecutableBytes, k.limits.MaxTotalBytes-k.copiedBytes)
	if why == "" {
		room = 0
	}
	read, err := readWithTimeout(k, hashTimeout, func() (hashedCopy, error) {
		defer f.Close()
		sum, head, err := hashAndCopy(ctx, f, room)
		return hashedCopy{sum, head}, err
	})
	if err != nil {
		return err
	}
	p.ExeSHA256 = read.sha256Hex
	k.hashCache[id] = executableHash{read.sha256Hex, upper}
	if why == "" {
		return nil
	}
	k.addExecutable(p, read, why, st.Size)
	return nil
}

// copyReason returns why a process's executable is copied: it is not part of an image. "" copies nothing.
func copyReason(p *Process) string {
	switch {
	case p.ExeIsMemfd:
		return "memfd"
	case p.ExeDeleted:
		return "deleted"
	case p.ExeInUpperLayer:
		return "upper layer"
	}
	return ""
}

// addExecutable adds the copy of an executable, and notes what the limit cut off.
func (k *collector) addExecutable(p *Process, read hashedCopy, reason string, size int64) {
	head := read.data
	if int64(len(head)) < size {
		k.addMissing("executable %s of process %d: copied %d of %d bytes: more than the limit", p.Exe, p.PID, len(head),
			size)
	}
	if len(head) == 0 {
		return
	}
	k.copiedBytes += int64(len(head))
	own := sha256.Sum256(head)
	k.executables = append(k.executables, ExecutableCopy{
		Name: "exe-" + read.sha256Hex[:16], ContainerPath: p.Exe, Reason: reason, SHA256: hex.EncodeToString(own[:]),
		FileSize: size,
		Data:     head,
	})
}

// hashTimeout limits how long one executable is read.
const hashTimeout = 3 * time.Second

// openExecutable is an open executable, and hashedCopy its hash and the copied bytes.
type openExecutable struct {
	file *os.File
	stat unix.Stat_t
}

type hashedCopy struct {
	sha256Hex string
	data      []byte
}

func openExecutableFile(path string) (openExecutable, error) {
	f, err := os.Open(path)
	if err != nil {
		return openExecutable{}, err
	}
	p := openExecutable{file: f}
	if err := unix.Fstat(int(f.Fd()), &p.stat); err != nil {
		return openExecutable{}, errors.Join(err, f.Close())
	}
	return p, nil
}

// hashAndCopy hashes a file and keeps its first room bytes. It stops when ctx ends.
func hashAndCopy(ctx context.Context, r io.Reader, room int64) (string, []byte, error) {
	hash := sha256.New()
	var head bytes.Buffer
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return "", nil, fmt.Errorf("timed out: %w", err)
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

// isInUpperLayer reports whether a process's executable is in the writable layer of its overlay: a file with its name
// is in the upper directory that the mount options name. If the sensor cannot see the upper directory, it returns
// false; events still contain the kernel's own answer.
func isInUpperLayer(p *Process) bool {
	b, _, err := readLimited(procDir(p.PID)+"/mountinfo", 1<<20)
	if err != nil {
		return false
	}
	best, upper := "", ""
	for f := range splitLines(b) {
		at := separatorIndex(f)
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
	// In a pod, the sensor sees the node's files through the first process.
	for _, root := range []string{"", "/proc/1/root"} {
		if st, err := os.Lstat(root + upper + name); err == nil && st.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// separatorIndex returns the index of the "-" after the optional fields of a mountinfo line, or -1.
func separatorIndex(f []string) int {
	for i := 6; i < len(f); i++ {
		if f[i] == "-" {
			return i
		}
	}
	return -1
}
