package activities

// The activity types in Temporal histories. Each is the name of a method of Activities, under which a worker registers
// it. Code that reads histories compares with these.
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
