"""What a trial is: its axes and levels, its identity, which combinations can exist, how it can end."""
