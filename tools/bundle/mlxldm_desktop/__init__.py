"""What Briefcase starts: its bundles need a source folder with the module's own name. All else comes with the wheel."""
