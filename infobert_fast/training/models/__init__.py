"""A stock model, perturbed in place; its sentence feature, head, critic and packing."""
