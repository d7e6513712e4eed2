"""The command `morphogen`: a file a verb. Nothing here loads torch before a verb is run."""
