"""`--where`: a condition in SQL, judged by paths, by statistics and by rows."""
