"""Claims: for each system the smallest honest experiment that shows, or fails to show, what its paper says."""
