"""`sinelr compare`: which runs a comparison needs, the queue that hands them out, and what they come to."""
