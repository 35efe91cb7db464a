"""Making a student of a teacher, stage by stage: of a file (`convert`) and in memory (`compress`)."""
