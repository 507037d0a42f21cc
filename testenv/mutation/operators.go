package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strings"
	"time"
)

// swaps are the operators that replace an operator of a condition.
func swaps(op token.Token) []string {
	switch op {
	case token.EQL:
		return []string{"!="}
	case token.NEQ:
		return []string{"=="}
	case token.LSS:
		return []string{"<=", ">="}
	case token.LEQ:
		return []string{"<", ">"}
	case token.GTR:
		return []string{">=", "<="}
	case token.GEQ:
		return []string{">", "<"}
	case token.LAND:
		return []string{"||"}
	case token.LOR:
		return []string{"&&"}
	default:
		return nil
	}
}

// mutateBinary swaps operators of conditions, and + and -.
func (m *mutator) mutateBinary(n *ast.BinaryExpr) {
	if m.info.Types[n].Value != nil || m.isInMake() {
		return
	}
	if n.Op == token.ADD || n.Op == token.SUB {
		m.negateNumber(n.Y, m.info.TypeOf(n), m.text(n.X)+map[token.Token]string{token.ADD: " - ", token.SUB: " + "}[n.Op]+
			m.text(n.Y))
		return
	}
	var choices, ids []string
	for _, op := range swaps(n.Op) {
		mutated := m.text(n.X) + " " + op + " " + m.text(n.Y)
		id := fmt.Sprint(m.add(n, mutated))
		ids = append(ids, id)
		choices = append(choices, fmt.Sprintf("mutOn(%s) && (%s)", id, mutated))
	}
	if len(ids) > 0 {
		m.wrap(n, func(inner string) string {
			return fmt.Sprintf("(%s || !mutOn(%s) && (%s))", strings.Join(choices, " || "), strings.Join(ids, ", "), inner)
		})
	}
}

// negateNumber changes the sign of an operand, which turns + into -.
func (m *mutator) negateNumber(operand ast.Expr, t types.Type, mutated string) {
	basic, ok := t.Underlying().(*types.Basic)
	name, known := m.typeText(t)
	if !ok || basic.Info()&types.IsNumeric == 0 || !known {
		return
	}
	id := m.add(operand, mutated)
	m.wrap(operand, func(inner string) string { return fmt.Sprintf("mutNeg[%s](%d, %s)", name, id, inner) })
}

// mutateTimeCall changes comparisons of times at their boundary, and the direction of additions.
func (m *mutator) mutateTimeCall(n *ast.CallExpr) {
	method, ok := n.Fun.(*ast.SelectorExpr)
	if !ok || len(n.Args) != 1 || m.info.TypeOf(method.X) == nil || m.info.TypeOf(method.X).String() != "time.Time" {
		return
	}
	x, arg := m.text(method.X), m.text(n.Args[0])
	switch method.Sel.Name {
	case "Before", "After":
		other := map[string]string{"Before": "After", "After": "Before"}[method.Sel.Name]
		mutated := fmt.Sprintf("!%s.%s(%s)", x, other, arg)
		id := m.add(n, mutated)
		m.wrap(n, func(inner string) string {
			return fmt.Sprintf("(mutOn(%d) && (%s) || !mutOn(%d) && (%s))", id, mutated, id, inner)
		})
	case "Add":
		m.negateNumber(n.Args[0], m.info.TypeOf(n.Args[0]), fmt.Sprintf("%s.Add(-(%s))", x, arg))
	case "Sub":
		id := m.add(n, fmt.Sprintf("%s.Sub(%s)", arg, x))
		m.wrap(n, func(inner string) string { return fmt.Sprintf("mutNeg(%d, %s)", id, inner) })
	}
}

// mutateCondition negates conditions that are no comparison, and swaps true and false.
func (m *mutator) mutateCondition(e ast.Expr) {
	t := m.info.Types[e]
	if t.Type == nil || !isBool(t.Type) || !t.IsValue() {
		return
	}
	if t.Value != nil {
		if id, ok := e.(*ast.Ident); ok && (id.Name == "true" || id.Name == "false") {
			m.negate(e, map[string]string{"true": "false", "false": "true"}[id.Name])
		}
		return
	}
	switch e.(type) {
	case *ast.Ident, *ast.SelectorExpr, *ast.CallExpr, *ast.UnaryExpr, *ast.IndexExpr:
	default:
		return
	}
	switch p := m.parent().(type) {
	case *ast.IfStmt, *ast.ForStmt, *ast.ReturnStmt, *ast.CaseClause:
	case *ast.BinaryExpr:
		if p.Op != token.LAND && p.Op != token.LOR {
			return
		}
	default:
		return
	}
	m.negate(e, "!("+m.text(e)+")")
}

func (m *mutator) negate(e ast.Expr, mutated string) {
	id := m.add(e, mutated)
	m.wrap(e, func(inner string) string { return fmt.Sprintf("((%s) != mutOn(%d))", inner, id) })
}

func isBool(t types.Type) bool {
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&types.IsBoolean != 0
}

// mutateConstant makes a number larger and smaller by one, and a duration by one of its unit.
func (m *mutator) mutateConstant(e ast.Expr) {
	t := m.info.Types[e]
	if t.Value == nil || t.Type == nil || !t.IsValue() || !m.allowsVariable(e) {
		return
	}
	basic, ok := t.Type.Underlying().(*types.Basic)
	name, known := m.typeText(t.Type)
	if !ok || !known || basic.Info()&(types.IsInteger|types.IsFloat) == 0 || basic.Info()&types.IsUntyped != 0 {
		return
	}
	value, _ := constant.Float64Val(constant.ToFloat(t.Value))
	const endless = 1 << 61 // such a number means "without a limit"
	if value >= endless {
		return
	}
	step := "1"
	switch {
	case t.Type.String() == "time.Duration":
		step = fmt.Sprint(int64(unitOf(time.Duration(value))))
	case basic.Info()&types.IsFloat != 0 && value != float64(int64(value)):
		step = "0.1" // a fraction
	}
	more := m.add(e, m.text(e)+" + 1")
	less := m.add(e, m.text(e)+" - 1")
	m.wrap(e, func(inner string) string {
		return fmt.Sprintf("mutStep[%s](%d, %d, %s, %s)", name, more, less, step, inner)
	})
}

// unitOf returns the largest unit that a duration is a multiple of.
func unitOf(d time.Duration) time.Duration {
	for _, unit := range []time.Duration{time.Hour, time.Minute, time.Second, time.Millisecond} {
		if d != 0 && d%unit == 0 {
			return unit
		}
	}
	return 1
}

// allowsVariable reports whether a constant may be replaced by a variable where it stands. It must be no part of a
// larger constant.
func (m *mutator) allowsVariable(e ast.Expr) bool {
	switch p := m.parent().(type) {
	case *ast.SelectorExpr, *ast.ArrayType, *ast.ValueSpec:
		return false
	case *ast.KeyValueExpr:
		return p.Value == e
	case *ast.CaseClause:
		return false
	case *ast.CallExpr:
		return p.Fun != e && m.info.Types[p].Value == nil && !m.isInMake()
	case ast.Expr:
		return m.info.Types[p].Value == nil && !m.isInMake()
	}
	return true
}

// isInMake reports whether the current node is inside of a call of make: a capacity changes nothing that a caller sees.
func (m *mutator) isInMake() bool {
	return slices.ContainsFunc(m.parents, func(n ast.Node) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return false
		}
		f, ok := c.Fun.(*ast.Ident)
		return ok && f.Name == "make"
	})
}

// mutateResults replaces results with their zero values.
func (m *mutator) mutateResults(n *ast.ReturnStmt) {
	declared := m.results()
	if len(n.Results) != len(declared) {
		return
	}
	for i, e := range n.Results {
		t := m.info.Types[e]
		name, known := m.typeText(declared[i])
		if !known || t.IsNil() || isBool(declared[i]) || isZeroLiteral(e) {
			continue
		}
		if t.Value != nil && (t.Value.Kind() != constant.String || constant.StringVal(t.Value) == "") {
			continue
		}
		id := m.add(e, "zero value")
		m.wrap(e, func(inner string) string { return fmt.Sprintf("mutZero[%s](%d, %s)", name, id, inner) })
	}
}

func isZeroLiteral(e ast.Expr) bool {
	c, ok := e.(*ast.CompositeLit)
	return ok && len(c.Elts) == 0
}

// removeStatement removes calls, assignments, and early ends of a function or a round of a loop. Locks and logs stay:
// no test can or should notice them.
func (m *mutator) removeStatement(s ast.Stmt) {
	switch s := s.(type) {
	case *ast.ExprStmt:
		if c, ok := s.X.(*ast.CallExpr); ok && !m.isUnobservable(c) {
			m.removal(s)
		}
	case *ast.AssignStmt:
		if s.Tok != token.DEFINE && !slices.ContainsFunc(s.Lhs, isBlank) {
			m.removal(s)
		}
	case *ast.IncDecStmt:
		m.removal(s)
	case *ast.BranchStmt:
		if s.Tok == token.CONTINUE {
			m.removal(s)
		}
	case *ast.ReturnStmt:
		if m.isEarlyReturn(s) {
			m.removal(s)
		}
	}
}

func isBlank(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "_"
}

func (m *mutator) isUnobservable(c *ast.CallExpr) bool {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name == "panic" || f.Name == "cancel"
	case *ast.SelectorExpr:
		if strings.HasSuffix(f.Sel.Name, "Lock") {
			return true
		}
		t := m.info.TypeOf(f.X)
		return t != nil && strings.HasSuffix(t.String(), "Logger")
	}
	return false
}

// isEarlyReturn reports whether the function also compiles without this return.
func (m *mutator) isEarlyReturn(s *ast.ReturnStmt) bool {
	above := m.parents[len(m.parents)-2]
	if c, ok := m.parent().(*ast.CaseClause); ok {
		return c.Body[len(c.Body)-1] == s && m.mayEnd(m.parents[len(m.parents)-3])
	}
	condition, ok := above.(*ast.IfStmt)
	if !ok || condition.Else != nil {
		return false
	}
	_, chained := m.parents[len(m.parents)-3].(*ast.IfStmt)
	return !chained
}

// mayEnd reports whether a switch may end without a return.
func (m *mutator) mayEnd(switchStmt ast.Node) bool {
	body := &ast.BlockStmt{}
	switch s := switchStmt.(type) {
	case *ast.SwitchStmt:
		body = s.Body
	case *ast.TypeSwitchStmt:
		body = s.Body
	}
	return len(m.results()) == 0 || !slices.ContainsFunc(body.List, func(c ast.Stmt) bool {
		clause, ok := c.(*ast.CaseClause)
		return ok && clause.List == nil
	})
}

// removeCaseBody leaves a switch at the beginning of a case.
func (m *mutator) removeCaseBody(c *ast.CaseClause) {
	if len(c.Body) < 2 || !m.mayEnd(m.parents[len(m.parents)-2]) { // the removal of one statement is the same
		return
	}
	id := m.add(c, "body removed")
	at := m.offset(c.Body[0].Pos())
	m.edits = append(m.edits, edit{at, at, func(string) string { return fmt.Sprintf("if mutOn(%d) { break }; ", id) }})
}
