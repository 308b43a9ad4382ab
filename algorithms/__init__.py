"""The methods, one file each. Whatever stands in this folder is found by being here."""
