"""Pages and sheets that show what runs made: nothing is computed here that a run did not write."""
