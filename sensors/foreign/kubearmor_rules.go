package foreign

import (
	"strings"

	"stanch/sensors"
)

// kubeArmorHardening maps the endings of the names of the policies that `karmor recommend` and the policy templates
// generate: "harden-WORKLOAD-ENDING". What a user writes is told by its tags.
var kubeArmorHardening = []struct {
	ending string
	mapping
}{
	{"pkg-mngr-exec", mapping{sensors.ObjectiveExecution, "T1072", 0}},
	{"k8s-client-tool-exec", mapping{sensors.ObjectiveDiscovery, "T1613", 0}},
	{"maint-tools-access", mapping{sensors.ObjectiveExecution, "T1609", 0}},
	{"cert-access", mapping{sensors.ObjectivePersistence, "T1553.004", 0}},
	{"trusted-cert-mod", mapping{sensors.ObjectiveDefenceEvasion, "T1553.004", 0}},
	{"file-integrity-monitoring", mapping{sensors.ObjectiveDefenceEvasion, "T1036", 0}},
	{"write-in-shm-dir", mapping{sensors.ObjectiveExecution, "T1059", 0}},
	{"write-etc-dir", mapping{sensors.ObjectivePersistence, "T1543", 0}},
	{"write-under-bin-dir", mapping{sensors.ObjectivePersistence, "T1554", 0}},
	{"write-under-dev-dir", mapping{sensors.ObjectiveDefenceEvasion, "T1036", 0}},
	{"shell-history-mod", mapping{sensors.ObjectiveDefenceEvasion, "T1070.003", 0}},
	{"impair-defense", mapping{sensors.ObjectiveDefenceEvasion, "T1562", 0}},
	{"network-service-scanning", mapping{sensors.ObjectiveDiscovery, "T1046", 0}},
	{"remote-file-copy", mapping{sensors.ObjectiveCommandControl, "T1105", 0}},
	{"remote-services", mapping{sensors.ObjectiveLateralMovement, "T1021", 0}},
	{"crypto-miner", mapping{sensors.ObjectiveCryptoMining, "T1496", 0}},
	{"service-account-token", mapping{sensors.ObjectiveCredentialAccess, "T1528", 0}},
	{"system-owner-discovery", mapping{sensors.ObjectiveDiscovery, "T1082", 0}},
	{"process-discovery", mapping{sensors.ObjectiveDiscovery, "T1057", 0}},
}

// meaning tells what a policy is for.
func (k *kubeArmor) meaning(tags []string, technique string) (mapping, string) {
	for _, h := range kubeArmorHardening {
		if strings.HasSuffix(strings.ToLower(k.Policy), h.ending) {
			m := h.mapping
			m.technique = orElse(technique, m.technique)
			return m, "It is one of KubeArmor's own hardening policies; its objective is known."
		}
	}
	// What a policy's author wrote in its message is as telling as its tags.
	m, reason := interpret("KubeArmor", nil, k.Policy+" "+k.Message, tags, technique)
	if strings.HasSuffix(reason, "is a guess.") && k.Policy == "DefaultPosture" {
		reason = "It was not on the list of what the workload may do; what it is for is not known, and the objective execution is a guess."
	}
	return m, reason
}
