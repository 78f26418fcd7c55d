"""What a node bears at its borders: strangers, slow callers, too few descriptors, a full disk, too little memory."""
