package simulate

import (
	"fmt"
	"strings"
	"sync"

	"stanch/playbooks"
	"stanch/sensors/diagnostic"
	"stanch/workflows/playbook"
)

// programCache caches checked playbooks, because a corpus starts the same ones thousands of times. Checked programs are
// immutable, so runs share them. It is safe for concurrent use.
type programCache struct {
	byFileAndSource sync.Map // by file and source
}

type checkedProgram struct {
	program  *playbooks.Program
	problems diagnostic.Diagnostics
}

func (p *programCache) loadCached(in playbook.Input, catalog playbooks.Catalog) (*playbooks.Program,
	diagnostic.Diagnostics,
) {
	var key strings.Builder
	key.WriteString(in.File + "\x00" + string(in.Source))
	for _, called := range in.Callees {
		key.WriteString("\x00" + string(called.Content))
	}
	if was, ok := p.byFileAndSource.Load(key.String()); ok {
		c := was.(checkedProgram) //nolint:forcetypeassert // nothing else is stored
		return c.program, c.problems
	}
	program, problems := in.LoadPlaybook(catalog)
	p.byFileAndSource.Store(key.String(), checkedProgram{program, problems})
	return program, problems
}

// textCounter counts equal texts, in the order of their first occurrence.
type textCounter struct {
	firstSeenOrder []string
	count          map[string]int
}

func (l *textCounter) add(text string, n int) {
	if l.count == nil {
		l.count = map[string]int{}
	}
	if l.count[text] == 0 {
		l.firstSeenOrder = append(l.firstSeenOrder, text)
	}
	l.count[text] += n
}

func (l *textCounter) countedTexts() []string {
	out := make([]string, 0, len(l.firstSeenOrder))
	for _, text := range l.firstSeenOrder {
		if n := l.count[text]; n > 1 {
			text = fmt.Sprintf("%d × %s", n, text)
		}
		out = append(out, text)
	}
	return out
}

// recordRequestWaits sets how long each approval request was pending: until its step was decided, or until its
// deadline.
func (s *simulation) recordRequestWaits() {
	for i := range s.result.ApprovalRequests {
		q := &s.result.ApprovalRequests[i]
		q.WaitedMS = q.TimeoutMS
		for _, step := range s.result.Steps {
			if step.RunNumber == q.RunNumber && step.Step == q.Step && step.AtMS >= q.AskedAtMS {
				q.WaitedMS = min(q.WaitedMS, step.AtMS-q.AskedAtMS)
			}
		}
	}
}
