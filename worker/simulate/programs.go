package simulate

import (
	"fmt"
	"strings"
	"sync"

	"stanch/playbooks"
	"stanch/sensors/diagnostic"
	"stanch/workflows/playbook"
)

// programs remembers playbooks that were checked: a corpus starts the same few thousands of times. A checked program is
// never changed, so that runs share it.
type programs struct {
	known sync.Map // file and source: checked
}

type checked struct {
	program  *playbooks.Program
	problems diagnostic.Diagnostics
}

func (p *programs) load(in playbook.Input, catalogue playbooks.Catalog) (*playbooks.Program, diagnostic.Diagnostics) {
	var key strings.Builder
	key.WriteString(in.File + "\x00" + string(in.Source))
	for _, called := range in.Callees {
		key.WriteString("\x00" + string(called.Content))
	}
	if was, ok := p.known.Load(key.String()); ok {
		c := was.(checked) //nolint:forcetypeassert // nothing else is stored
		return c.program, c.problems
	}
	program, problems := in.LoadPlaybook(catalogue)
	p.known.Store(key.String(), checked{program, problems})
	return program, problems
}

// lines counts texts that are alike, in the order in which they first came.
type lines struct {
	order []string
	count map[string]int
}

func (l *lines) add(text string, n int) {
	if l.count == nil {
		l.count = map[string]int{}
	}
	if l.count[text] == 0 {
		l.order = append(l.order, text)
	}
	l.count[text] += n
}

func (l *lines) all() []string {
	out := make([]string, 0, len(l.order))
	for _, text := range l.order {
		if n := l.count[text]; n > 1 {
			text = fmt.Sprintf("%d × %s", n, text)
		}
		out = append(out, text)
	}
	return out
}

// waits says how long each question stood open: until its step was decided, or until nobody had answered.
func (s *sim) waits() {
	for i := range s.result.Questions {
		q := &s.result.Questions[i]
		q.WaitedMS = q.TimeoutMS
		for _, step := range s.result.Steps {
			if step.Run == q.Run && step.Step == q.Step && step.AtMS >= q.AtMS {
				q.WaitedMS = min(q.WaitedMS, step.AtMS-q.AtMS)
			}
		}
	}
}
