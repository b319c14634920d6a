"""What makes the pages: worked numbers, diagrams, experiments and the site. Run from the project's folder."""
