"""Reports: from run folders to tables, heat maps and one HTML page."""
