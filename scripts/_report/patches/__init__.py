"""Pictures of the features of patches, and a part of the page on which a click chooses one."""
