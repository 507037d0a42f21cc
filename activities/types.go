package activities

// The activity types, as Temporal histories name them. Each is the name of a method of Activities, which a worker
// registers by that name; whoever reads histories compares with these.
const (
	TypeObserve       = "Observe"
	TypePlan          = "Plan"
	TypeApply         = "Apply"
	TypeVerify        = "Verify"
	TypeUndo          = "Undo"
	TypeCountVotes    = "CountVotes"
	TypeRecordAttempt = "RecordAttempt"
	TypeSyncMessage   = "SyncMessage"
)
