"""Frozen teachers for distillation, all behind one call: frames in, patch features out.

    teacher = open_teacher("LanguageBind_Video_merge", stab_cells=16)
    features = teacher({"teacher_pixels": pixels_BTCHW})        # (B, T, G, G, D)

A teacher is no module: it is in no `state_dict`, and its weights are read at the first call.
"""
