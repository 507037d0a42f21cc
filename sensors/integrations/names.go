package integrations

import (
	"strings"

	"stanch/sensors"
)

// serviceAccountOf returns the service account of a user name such as "system:serviceaccount:shop:web", or the zero
// value.
func serviceAccountOf(user string) sensors.AuditServiceAccount {
	rest, ok := strings.CutPrefix(user, "system:serviceaccount:")
	namespace, name, two := strings.Cut(rest, ":")
	if !ok || !two || namespace == "" || name == "" || strings.Contains(name, ":") {
		return sensors.AuditServiceAccount{}
	}
	return sensors.AuditServiceAccount{Namespace: namespace, Name: name}
}

// roleOf returns the role and the session of a principal such as
// "arn:aws:sts::123456789012:assumed-role/ROLE/SESSION".
func roleOf(arn string) (role, session string) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 || parts[0] != "arn" {
		return "", ""
	}
	if rest, ok := strings.CutPrefix(parts[5], "assumed-role/"); ok {
		role, session, _ = strings.Cut(rest, "/")
		return role, session
	}
	if rest, ok := strings.CutPrefix(parts[5], "role/"); ok {
		return baseName(rest), ""
	}
	return "", ""
}
