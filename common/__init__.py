"""What every layer needs: the error type, files, names, checks of files that strangers made."""
