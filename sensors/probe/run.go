package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"

	"github.com/cilium/ebpf/ringbuf"

	"stanch/sensors"
)

// Run hands every event to f, one at a time, until ctx ends (then it returns nil) or Close. An event's
// Container has only CgroupID and CgroupPath set: see package identity. f must not block for long: the rings are
// finite. Exits come through a ring of their own and may overtake what the same process did before.
func (p *Probe) Run(ctx context.Context, f func(sensors.Event)) error {
	var (
		wg   sync.WaitGroup
		errs [2]error
	)
	for i, ring := range []*ringbuf.Reader{p.alerts, p.telemetry} {
		wg.Go(func() { errs[i] = p.drain(ctx, ring, f) })
	}
	stop := context.AfterFunc(ctx, func() {
		// Wakes the readers; a deadline would not, once they wait. The rings stay usable for another Run.
		for _, ring := range []*ringbuf.Reader{p.alerts, p.telemetry} {
			_ = ring.Flush()
		}
	})
	defer stop()
	wg.Wait()
	return errors.Join(errs[:]...)
}

func (p *Probe) drain(ctx context.Context, ring *ringbuf.Reader, f func(sensors.Event)) error {
	var rec ringbuf.Record
	for ctx.Err() == nil {
		err := ring.ReadInto(&rec)
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case errors.Is(err, ringbuf.ErrFlushed):
			continue
		case err != nil:
			return fmt.Errorf("read the kernel's ring: %w", err)
		}
		if p.opt.Tap != nil {
			p.opt.Tap(rec.RawSample)
		}
		p.Feed(rec.RawSample, f)
	}
	return nil
}

// Feed takes one record as the kernel's rings hold them, as Run does: recorded ones can be gone through again with it. f
// gets what comes of it; a record that cannot be decoded is counted among the drops.
func (p *Probe) Feed(record []byte, f func(sensors.Event)) {
	d, err := decode(record)
	if err != nil {
		p.bad.Add(1)
		return
	}
	p.deliver(&d, f)
}

func (p *Probe) deliver(d *decoded, f func(sensors.Event)) {
	e := &d.event
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.made != "" {
		p.made(e.Container.CgroupID, d.made)
		return
	}
	g := p.classify(e.Container.CgroupID, e.Process.PID)
	if g.class == ClassHost {
		if !p.opt.Host {
			return // made before the kernel knew, or while we found out
		}
		e.Container = sensors.Container{}
	}
	e.Container.CgroupPath = g.path
	switch e.Kind {
	case sensors.KindOpen, sensors.KindDelete, sensors.KindUnix:
		if e.File.Sensitive = sensitive(e); e.File.Sensitive == "" {
			return // only its base name looked sensitive
		}
	default:
	}
	if p.runtime(d) {
		p.setup.Add(1)
		return
	}
	if e.Kind == sensors.KindExec {
		p.enter(d)
	}
	if e.Kind == sensors.KindConnect && p.opt.Denies != nil {
		if to, err := netip.ParseAddr(e.Network.Address); err == nil {
			e.Network.Denied = p.opt.Denies(e.Container.CgroupID, netip.AddrPortFrom(to, e.Network.Port))
		}
	}
	e.Node = p.opt.Node
	e.Time = p.clock.wall(d.boot)
	e.ID = p.opt.Node + "-" + p.boot + "-" + strconv.FormatUint(d.boot, 36) + "-" + strconv.FormatUint(uint64(d.cpu), 36)
	p.table.Learn(e)
	p.table.Enrich(e)
	p.counts[e.Kind].Add(1)
	f(*e)
}
