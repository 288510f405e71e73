"""What may be done before release to make safety last. One file a defense."""
