package powerloss

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// call is one system call of the recording. Its effect is replayed at its end, except that of close: another thread can
// reuse the descriptor before strace prints the end.
type call struct {
	name   string
	args   []string // strings are decoded, everything else is as strace prints it
	result int
	failed bool
}

// String returns the call without long content.
func (c call) String() string {
	var args []string
	for _, a := range c.args {
		if len(a) > 120 {
			a = a[:120] + "…"
		}
		args = append(args, a)
	}
	return fmt.Sprintf("%s(%s) = %d", c.name, strings.Join(args, ", "), c.result)
}

func (c call) isAcknowledgment() bool {
	return c.name == "write" && len(c.args) > 1 && c.args[0] == "1" && strings.HasSuffix(c.args[1], acknowledgment)
}

// parseTrace parses the output of strace -f -xx.
func parseTrace(log string) ([]call, error) {
	var calls []call
	unfinished := map[string]string{} // by thread
	for line := range strings.Lines(log) {
		line = strings.TrimSuffix(line, "\n")
		thread, text, ok := strings.Cut(line, " ")
		if !ok {
			return nil, fmt.Errorf("unknown line %q", line)
		}
		text = strings.TrimLeft(text, " ")
		if strings.HasPrefix(text, "+++") || strings.HasPrefix(text, "---") || strings.HasSuffix(text, "= ?") ||
			strings.HasSuffix(text, "<detached ...>") {
			continue // the end of a thread
		}
		if start, is := strings.CutSuffix(text, " <unfinished ...>"); is {
			unfinished[thread] = start
			if c, err := parseCall(start + ") = 0"); err == nil && c.name == "close" {
				calls = append(calls, c)
			}
			continue
		}
		if strings.HasPrefix(text, "<... ") {
			_, rest, ok := strings.Cut(text, " resumed>")
			if !ok {
				return nil, fmt.Errorf("unknown line %q", line)
			}
			text = unfinished[thread] + rest
			delete(unfinished, thread)
			if strings.HasPrefix(text, "close(") {
				continue // replayed at its start
			}
		}
		c, err := parseCall(text)
		if err != nil {
			return nil, fmt.Errorf("%w in %q", err, line[:min(len(line), 200)])
		}
		calls = append(calls, c)
	}
	return calls, nil
}

func parseCall(text string) (call, error) {
	name, rest, ok := strings.Cut(text, "(")
	end := strings.LastIndex(rest, ") ")
	if !ok || end < 0 {
		return call{}, fmt.Errorf("no system call")
	}
	result := strings.TrimLeft(strings.TrimPrefix(strings.TrimLeft(rest[end+2:], " "), "="), " ")
	number, _, _ := strings.Cut(result, " ")
	n, err := strconv.Atoi(number)
	if err != nil {
		return call{}, fmt.Errorf("unknown result %q", result)
	}
	c := call{name: name, result: n, failed: n < 0}
	for arg := range strings.SplitSeq(rest[:end], ", ") { // -xx escapes every character of a string
		if quoted, is := strings.CutPrefix(arg, `"`); is {
			if !strings.HasSuffix(quoted, `"`) {
				return call{}, fmt.Errorf("shortened string")
			}
			raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSuffix(quoted, `"`), `\x`, ""))
			if err != nil {
				return call{}, fmt.Errorf("unknown string %q: %w", arg, err)
			}
			arg = string(raw)
		}
		c.args = append(c.args, arg)
	}
	switch name { // older forms, which SQLite uses
	case "open":
		c.name, c.args = "openat", append([]string{"AT_FDCWD"}, c.args...)
	case "unlink":
		c.name, c.args = "unlinkat", append([]string{"AT_FDCWD"}, append(c.args, "0")...)
	}
	return c, nil
}

// handlers are the system calls that the model replays.
var handlers = map[string]func(*disk, call) error{
	"openat": (*disk).open, "close": (*disk).close, "lseek": (*disk).seek,
	"write": (*disk).write, "pwrite64": (*disk).writeAt, "ftruncate": (*disk).truncate,
	"fsync": (*disk).sync, "fdatasync": (*disk).sync,
	"renameat": (*disk).rename, "renameat2": (*disk).rename, "linkat": (*disk).link,
	"unlinkat": (*disk).unlink, "mkdirat": (*disk).makeDirectory,
}

// unknown are system calls that the model does not replay: one that touches the directory fails the test. Those with a
// question mark do not exist on every architecture.
var unknown = []string{
	"?creat", "openat2", "writev", "pwritev", "pwritev2", "sync_file_range", "syncfs",
	"?rename", "?link", "?rmdir", "?mkdir", "?symlink", "symlinkat", "truncate", "fallocate",
	"copy_file_range", "sendfile", "splice", "dup", "?dup2", "dup3",
}

// traced returns the names of all system calls to record.
func traced() []string {
	names := append(slices.Clone(unknown), "?open", "?unlink") // replayed as openat and unlinkat
	for name := range handlers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
