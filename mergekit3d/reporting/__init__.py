"""What a study found, as one HTML file and as tables on the screen."""
