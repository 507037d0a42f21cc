package integrations

import (
	"strings"

	"stanch/sensors"
)

// kubeArmorHardeningPolicies maps the policies that `karmor recommend` and the policy templates generate, by the end
// of their names: "harden-WORKLOAD-ENDING". A user's own policy is mapped by its tags.
var kubeArmorHardeningPolicies = []struct {
	ending string
	ruleMapping
}{
	{"pkg-mngr-exec", ruleMapping{sensors.ObjectiveExecution, "T1072", 0}},
	{"k8s-client-tool-exec", ruleMapping{sensors.ObjectiveDiscovery, "T1613", 0}},
	{"maint-tools-access", ruleMapping{sensors.ObjectiveExecution, "T1609", 0}},
	{"cert-access", ruleMapping{sensors.ObjectivePersistence, "T1553.004", 0}},
	{"trusted-cert-mod", ruleMapping{sensors.ObjectiveDefenseEvasion, "T1553.004", 0}},
	{"file-integrity-monitoring", ruleMapping{sensors.ObjectiveDefenseEvasion, "T1036", 0}},
	{"write-in-shm-dir", ruleMapping{sensors.ObjectiveExecution, "T1059", 0}},
	{"write-etc-dir", ruleMapping{sensors.ObjectivePersistence, "T1543", 0}},
	{"write-under-bin-dir", ruleMapping{sensors.ObjectivePersistence, "T1554", 0}},
	{"write-under-dev-dir", ruleMapping{sensors.ObjectiveDefenseEvasion, "T1036", 0}},
	{"shell-history-mod", ruleMapping{sensors.ObjectiveDefenseEvasion, "T1070.003", 0}},
	{"impair-defense", ruleMapping{sensors.ObjectiveDefenseEvasion, "T1685", 0}},
	{"network-service-scanning", ruleMapping{sensors.ObjectiveDiscovery, "T1046", 0}},
	{"remote-file-copy", ruleMapping{sensors.ObjectiveCommandControl, "T1105", 0}},
	{"remote-services", ruleMapping{sensors.ObjectiveLateralMovement, "T1021", 0}},
	{"crypto-miner", ruleMapping{sensors.ObjectiveCryptoMining, "T1496", 0}},
	{"service-account-token", ruleMapping{sensors.ObjectiveCredentialAccess, "T1528", 0}},
	{"system-owner-discovery", ruleMapping{sensors.ObjectiveDiscovery, "T1082", 0}},
	{"process-discovery", ruleMapping{sensors.ObjectiveDiscovery, "T1057", 0}},
}

// mapPolicy returns the mapping of a policy and how it was determined.
func (k *kubeArmorRecord) mapPolicy(tags []string, technique string) (ruleMapping, string) {
	for _, h := range kubeArmorHardeningPolicies {
		if strings.HasSuffix(strings.ToLower(k.Policy), h.ending) {
			m := h.ruleMapping
			m.technique = orDefault(technique, m.technique)
			return m, "It is one of KubeArmor's own hardening policies; its objective is known."
		}
	}
	// The message of a policy is as informative as its tags.
	m, reason := mapRule("KubeArmor", nil, k.Policy+" "+k.Message, tags, technique)
	if strings.HasSuffix(reason, "is a guess.") && k.Policy == "DefaultPosture" {
		reason = "It is not on the workload's allowlist; its purpose is unknown, and the objective \"execution\" is a guess."
	}
	return m, reason
}
