"""The long checks: whole meshes of slow devices in the virtual rack, asked, killed and measured."""
