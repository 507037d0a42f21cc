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

// Run passes every event to f, one at a time, until ctx ends or Close is called; it then returns nil. An event's
// Container has only CgroupID and CgroupPath set; package containermeta resolves the rest. f must not block for long,
// because the ring buffers are finite. Exit events use their own ring buffer and may overtake earlier events of the
// same process.
func (p *Probe) Run(ctx context.Context, f func(sensors.Event)) error {
	var (
		wg   sync.WaitGroup
		errs [2]error
	)
	for i, ring := range []*ringbuf.Reader{p.alerts, p.telemetry} {
		wg.Go(func() { errs[i] = p.readRing(ctx, ring, f) })
	}
	stop := context.AfterFunc(ctx, func() {
		// Flush wakes the blocked readers, which a deadline does not. The ring buffers stay usable for another Run.
		for _, ring := range []*ringbuf.Reader{p.alerts, p.telemetry} {
			_ = ring.Flush()
		}
	})
	defer stop()
	wg.Wait()
	return errors.Join(errs[:]...)
}

func (p *Probe) readRing(ctx context.Context, ring *ringbuf.Reader, f func(sensors.Event)) error {
	var rec ringbuf.Record
	for ctx.Err() == nil {
		err := ring.ReadInto(&rec)
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case errors.Is(err, ringbuf.ErrFlushed):
			continue
		case err != nil:
			return fmt.Errorf("read the kernel's ring buffer: %w", err)
		}
		if p.options.RecordTap != nil {
			p.options.RecordTap(rec.RawSample)
		}
		p.ReplayRecord(rec.RawSample, f)
	}
	return nil
}

// ReplayRecord processes one raw record like Run does, so that recorded records can be replayed. It calls f if the
// record leads to an event. A record that cannot be decoded is counted as a drop.
func (p *Probe) ReplayRecord(record []byte, f func(sensors.Event)) {
	d, err := decodeRecord(record)
	if err != nil {
		p.undecodable.Add(1)
		return
	}
	p.deliver(&d, f)
}

func (p *Probe) deliver(d *decodedRecord, f func(sensors.Event)) {
	e := &d.event
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.newCgroupPath != "" {
		p.recordNewCgroup(e.Container.CgroupID, d.newCgroupPath)
		return
	}
	g := p.classifyCgroup(e.Container.CgroupID, e.Process.PID)
	if g.class == ClassHost {
		if !p.options.IncludeHost {
			return // sent before the kernel filter was updated
		}
		e.Container = sensors.Container{}
	}
	e.Container.CgroupPath = g.path
	switch e.Kind {
	case sensors.KindFileOpen, sensors.KindFileDelete, sensors.KindUnixConnect:
		if e.File.SensitiveClass = sensitiveClassOfEvent(e); e.File.SensitiveClass == "" {
			return // only the base name looked sensitive
		}
	default:
	}
	if p.isRuntimeSetup(d) {
		p.runtimeSetupEvents.Add(1)
		return
	}
	if e.Kind == sensors.KindExec {
		p.setExecedInto(d)
	}
	if e.Kind == sensors.KindConnect && p.options.WouldDeny != nil {
		if to, err := netip.ParseAddr(e.Network.Address); err == nil {
			e.Network.Denied = p.options.WouldDeny(e.Container.CgroupID, netip.AddrPortFrom(to, e.Network.Port))
		}
	}
	e.Node = p.options.Node
	e.Time = p.clock.toWallTime(d.bootTimeNS)
	e.ID = p.options.Node + "-" + p.bootIDPrefix + "-" + strconv.FormatUint(d.bootTimeNS, 36) + "-" +
		strconv.FormatUint(uint64(d.cpu), 36)
	p.processes.RecordEvent(e)
	p.processes.AddAncestors(e)
	p.eventCounts[e.Kind].Add(1)
	f(*e)
}
