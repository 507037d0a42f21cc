package rules

func (l *loader) advise() {}
