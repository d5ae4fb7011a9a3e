"""Labels for the class folders of the public brain-MRI data sets."""

KNOWN_LABELS = ("no tumour", "tumour")
# Folder names in lower case -> index in KNOWN_LABELS; 1 is the positive one.
KNOWN_FOLDERS = {"no": 0, "notumor": 0, "yes": 1, "glioma": 1, "meningioma": 1, "pituitary": 1}
