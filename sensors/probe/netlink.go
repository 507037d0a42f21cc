package probe

import (
	"encoding/binary"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// errTooManyEntries means that a list was truncated.
var errTooManyEntries = errors.New("more entries than the limit")

// dumpTimeoutSeconds limits each read of a response, in seconds: the kernel blocks a request while another process
// changes interfaces.
const dumpTimeoutSeconds = 2

// dumpNetlink sends a request about the network namespace of this thread and calls visit for each message of the
// response, at most most times, because a container controls the length of the response.
func dumpNetlink(kind uint16, body []byte, flags uint16, most int, visit func(syscall.NetlinkMessage) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err //nolint:wrapcheck // the caller adds the context
	}
	defer unix.Close(fd)
	// The kernel respects the index in a request only with strict checking.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return err //nolint:wrapcheck // as above
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO,
		&unix.Timeval{Sec: dumpTimeoutSeconds}); err != nil {
		return err //nolint:wrapcheck // as above
	}
	ask := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(body))
	binary.NativeEndian.PutUint32(ask, uint32(unix.NLMSG_HDRLEN+len(body)))
	binary.NativeEndian.PutUint16(ask[4:], kind)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST|flags)
	if err := unix.Sendto(fd, append(ask, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err //nolint:wrapcheck // as above
	}
	answer := make([]byte, 64<<10)
	for seen := 0; ; {
		got, _, err := unix.Recvfrom(fd, answer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err //nolint:wrapcheck // as above
		}
		messages, err := syscall.ParseNetlinkMessage(answer[:got])
		if err != nil {
			return err //nolint:wrapcheck // as above
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(m.Data) < 4 {
					return unix.EINVAL
				}
				return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			}
			if seen++; seen > most {
				return errTooManyEntries
			}
			if err := visit(m); err != nil {
				return err
			}
		}
		if flags&unix.NLM_F_DUMP == 0 {
			return nil
		}
	}
}
