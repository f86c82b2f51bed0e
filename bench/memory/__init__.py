"""Where bytes are: the tracker, the allocators, and what operators allocate inside themselves."""
